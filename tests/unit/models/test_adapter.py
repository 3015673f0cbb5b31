"""Low-rank adapters, on every network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvsr import models
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.models._adapter import adapter_names, merge
from fedvsr.models.spec import AdapterConfig, ModelConfig
from fedvsr.params import ParamTable, flatten, weighted_sum
from fedvsr.training.checkpoint import save_model
from fedvsr.training.requirements import model_spec
from tests.golden import recipe
from tests.unit.models.small import SMALL

# With fewer, some layers are not used.
NUM_FRAMES = {"vrt": 2, "rvrt": 4, "iart": 3, "basicvsrpp": 3, "tiny": 2}
PLACES = [
    ("vrt", "linear"),
    ("rvrt", "linear"),
    ("rvrt", "conv"),
    ("iart", "linear"),
    ("basicvsrpp", "conv"),
    ("tiny", "conv"),
]


def section(name: str, **settings: object) -> ModelConfig:
    config: ModelConfig = load("fedvsr.models", name).Config(**SMALL[name], **settings)
    return config


def fresh(config: ModelConfig, seed: int = 0) -> nn.Module:
    with scoped_torch(seed, 1):
        return models.build_fresh(config)


def file_of(path: Path, config: ModelConfig) -> Path:
    """A file of a trained network: no weight of it is zero."""
    network = fresh(config)
    recipe.fill(network)
    save_model(path, network, config)
    return path


def draw(network: nn.Module, seed: int, std: float = 0.05) -> None:
    """What a training might do: change what learns, and nothing else."""
    with torch.no_grad(), scoped_torch(seed, 1):
        for parameter in network.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=std)


@pytest.mark.parametrize(("name", "targets"), PLACES)
def test_adapters_start_as_the_network_all_learn_and_are_merged(
    name: str, targets: str, tmp_path: Path
) -> None:
    config = section(name)
    weights = file_of(tmp_path / "base.safetensors", config)
    adapter = {"rank": 2, "targets": targets}
    adapted_config = section(name, weights=str(weights), adapter=adapter)
    rules = model_spec(config)
    lq = torch.rand(1, max(NUM_FRAMES[name], rules.min_frames), 3, *(max(8, rules.min_size),) * 2)
    with scoped_torch(0, 1):
        base = models.load_checkpoint(weights)
        with torch.no_grad():
            sr = base(lq)
        network = fresh(adapted_config).eval()
        models.load_start(network, adapted_config)
        started = network(lq)
        # Nothing of adapters is to be seen.
        assert torch.equal(started, sr)
        started.square().mean().backward()
        learns = {n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()}
        # A learns from the second step on: the gradient is a product with B, which is zero.
        assert learns == {n for n in adapter_names(network) if n.endswith("lora_b")}
        assert {n for n, p in network.named_parameters() if p.requires_grad} == {
            *adapter_names(network)
        }
        draw(network, 1)
        save_model(tmp_path / "adapted.safetensors", network, adapted_config)
        again = models.load_checkpoint(tmp_path / "adapted.safetensors")
        with torch.no_grad():
            changed = network(lq)
            assert not torch.equal(changed, sr)
            assert torch.equal(again(lq), changed)
            merge(network)
            assert torch.equal(network(lq), changed)
    assert list(network.state_dict()) == list(base.state_dict())
    assert [*map(type, network.modules())] == [*map(type, base.modules())]
    assert all(parameter.requires_grad for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "targets", "num_values", "share"),
    [
        ("vrt", "linear", 1_700_880, 0.0522),
        ("rvrt", "linear", 382_464, 0.0355),
        ("iart", "linear", 835_200, 0.0623),
        ("rvrt", "attention", 221_184, 0.0205),
        ("basicvsrpp", "conv", 968_057, 0.1322),
    ],
)
def test_adapters_of_the_papers_networks_are_small(
    name: str, targets: str, num_values: int, share: float
) -> None:
    config = load("fedvsr.models", name).Config(size="paper", adapter={"targets": targets})
    with torch.device("meta"):
        network = models.build_fresh(config)
    own = {*adapter_names(network)}
    of_base = sum(p.numel() for n, p in network.named_parameters() if n not in own)
    learning = sum(p.numel() for p in network.parameters() if p.requires_grad)
    assert learning == num_values
    assert learning / of_base == pytest.approx(share, abs=5e-5)


@pytest.mark.parametrize("freeze_a", [False, True])
def test_the_mean_of_clients_is_exact_if_a_is_frozen(freeze_a: bool) -> None:
    config = section("tiny", adapter={"rank": 2, "targets": "conv", "freeze_a": freeze_a})

    def weights(network: nn.Module) -> Tensor:
        return torch.cat([m.weight.flatten() for m in network.modules() if hasattr(m, "lora_b")])

    clients = [fresh(config) for _ in range(3)]
    for seed, client in enumerate(clients):
        draw(client, seed)
    server = fresh(config)
    mean = weighted_sum(map(flatten, clients), [1 / 3] * 3)
    views = ParamTable.of(server).views(mean)
    with torch.no_grad():
        for name, parameter in server.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.from_numpy(views[name]))
        want = torch.stack([weights(client) for client in clients]).mean(0)
        error = (weights(server) - want).abs().max()
        change = (want - weights(fresh(config))).abs().max()
    # Twice the rounding of float32; or a hundredth of the change, which is no rounding.
    assert (error < 1e-6) == freeze_a
    assert (error > change / 100) != freeze_a


def test_the_networks_own_weights_are_those_without_adapters() -> None:
    plain, adapted = fresh(section("iart")), fresh(section("iart", adapter=AdapterConfig()))
    own = adapted.state_dict()
    assert all(torch.equal(own[name], value) for name, value in plain.state_dict().items())
    one, two = (
        dict(fresh(section("iart", adapter={}), seed).named_parameters()) for seed in (1, 2)
    )
    name = next(name for name in one if name.endswith("lora_a"))
    assert not torch.equal(one[name], two[name])
    # An input's variance is kept.
    assert np.isclose(float(one[name].detach().std()) * one[name].shape[1] ** 0.5, 1, atol=0.2)


def test_no_product_of_adapters_is_rounded_to_halves() -> None:
    network = fresh(section("tiny", adapter={"rank": 2, "targets": "conv"}))
    draw(network, 1)
    layer = network.get_submodule("extract")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        weight = layer.weight
    base = network.state_dict()["extract.weight"]
    # alpha / rank is 16 / 2.
    want = base + 8 * (layer.lora_b @ layer.lora_a).view_as(base)
    assert torch.allclose(weight, want, rtol=1e-6, atol=1e-7)


def test_files_with_other_adapters_are_refused(tmp_path: Path) -> None:
    adapter = {"rank": 2, "targets": "conv"}
    path = file_of(tmp_path / "adapted.safetensors", section("tiny", adapter=adapter))
    settings = {**SMALL["tiny"], "weights": str(path)}
    # The same adapters continue.
    network = models.build("tiny", **settings, adapter=adapter)
    assert network.get_parameter("extract.lora_b").any()
    with pytest.raises(UserError, match=r"has adapters, and model\.adapter is not set: make"):
        models.build("tiny", **settings)
    with pytest.raises(UserError, match=r"has extract.lora_a as \[2, 27\], not \[3, 27\]"):
        models.build("tiny", **settings, adapter={"rank": 3, "targets": "conv"})
    with pytest.raises(UserError, match="targets = linear finds no such layer in tiny; set it to"):
        models.build("tiny", **settings, adapter={"rank": 3})
