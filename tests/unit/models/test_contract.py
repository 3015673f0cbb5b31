"""The contract of every network; tests find new networks themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fedvsr import models
from fedvsr.contracts.network import CONTRACTS
from fedvsr.determinism import scoped_torch
from fedvsr.lookup import load, names
from fedvsr.models.spec import ModelConfig
from fedvsr.models.tiny import Config, spec
from fedvsr.models.tiny.network import Model
from fedvsr.params import flatten
from fedvsr.resize import upscale_planes
from fedvsr.training.requirements import model_spec
from tests.conftest import MakeOnce


def test_unknown_network() -> None:
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        models.build("tinny")
    assert "tiny" in names("fedvsr.models")


def test_fresh_weights_follow_the_seed() -> None:
    def weights(seed: int) -> bytes:
        with scoped_torch(seed, 1):
            return flatten(models.build("tiny")).tobytes()

    before = torch.random.get_rng_state()
    assert weights(1) == weights(1)
    assert weights(1) != weights(2)
    assert torch.equal(torch.random.get_rng_state(), before), "the caller's draws are untouched"


@pytest.mark.parametrize("scale", [1, 2, 4])
def test_tiny_starts_as_bicubic_and_every_parameter_learns(scale: int) -> None:
    config = Config(scale=scale, channels=8, blocks=1)
    network, lq = Model(config), torch.rand(2, 3, 3, 9, 7)
    sr = network(lq)
    assert sr.shape == (2, 3, 3, 9 * scale, 7 * scale)
    assert spec(config).scale == scale
    torch.testing.assert_close(sr[1, 2], upscale_planes(lq[1, 2][None], scale)[0])
    # The last layer starts at zero, so the others learn from the second step on.
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        (network(lq) - 0.5).square().mean().backward()
        optimiser.step()
    still = [n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []


def test_tiny_uses_neighbouring_frames_both_ways() -> None:
    torch.manual_seed(0)
    network = Model(Config(channels=8, blocks=1))
    torch.nn.init.normal_(network.to_pixels.weight)
    lq = torch.rand(1, 5, 3, 8, 8)
    for changed in (0, 4):
        other = lq.clone()
        other[:, changed] = torch.rand(3, 8, 8)
        assert not torch.equal(network(lq)[:, 2], network(other)[:, 2]), changed


def test_demo_network_is_small() -> None:
    assert flatten(models.build("tiny")).size < 500_000


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
@pytest.mark.parametrize("name", names("fedvsr.models"))
def test_contract(
    contract: Callable[[ModelConfig, Path], None], name: str, make_once: MakeOnce
) -> None:
    config = load("fedvsr.models", name).Config(size="demo")
    assert model_spec(config).features is not None
    contract(config, make_once("contracts", lambda _: None))


@pytest.mark.parametrize(
    "config", [c for n in names("fedvsr.models") for c in models.packaged(n)], ids=str
)
def test_every_size_has_its_parts(config: ModelConfig) -> None:
    """Parts are declared once for all sizes, whose layers have other numbers."""
    with torch.device("meta"):
        network = models.build_fresh(config)
    rules, params = model_spec(config), [name for name, _ in network.named_parameters()]
    norms = [
        f"{prefix}.{name}"
        for prefix, module in network.named_modules()
        if isinstance(module, torch.nn.LayerNorm)
        for name, _ in module.named_parameters(recurse=False)
    ]
    for part in rules.parts:
        assert any(rules.in_part(part, name) for name in params), part
    found = [name for name in params if "norm" in rules.parts and rules.in_part("norm", name)]
    assert sorted(found) == sorted(norms)
