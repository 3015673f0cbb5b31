"""The contract of every network; tests find new networks themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fedvsr import models
from fedvsr.algorithms import fedvsr
from fedvsr.data.config import DataConfig
from fedvsr.data.split import prepare
from fedvsr.determinism import scoped_torch
from fedvsr.lookup import load, names
from fedvsr.messages import ClientTask
from fedvsr.models.spec import ModelConfig
from fedvsr.models.tiny import Config, spec
from fedvsr.models.tiny.network import Model
from fedvsr.params import ParamTable, flatten
from fedvsr.resize import upscale_planes
from fedvsr.training.config import LocalConfig
from fedvsr.training.features import with_features
from fedvsr.training.local import LocalTrainer
from fedvsr.training.requirements import model_spec
from tests.conftest import moving_texture, write_video


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


@pytest.mark.parametrize("scale", [2, 4])
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


def demo(name: str) -> ModelConfig:
    config: ModelConfig = load("fedvsr.models", name).Config(size="demo")
    return config


def sample(config: ModelConfig) -> torch.Tensor:
    """Low-resolution noise of the smallest size: two clips of four frames."""
    rules = model_spec(config)
    side = max(8, rules.min_size)
    return torch.rand(2, max(4, rules.min_frames), 3, side, side)


@pytest.mark.parametrize("name", names("fedvsr.models"))
def test_features_are_a_map_for_every_frame_and_carry_gradients(name: str) -> None:
    network, lq = models.build_fresh(demo(name)).train(), sample(demo(name))
    sr, features = with_features(network, network.spec.features, lq)
    assert features.shape[0] == sr.shape[0] * sr.shape[1]
    assert features.shape[2:] == lq.shape[3:]
    features.square().mean().backward()
    learns = [n for n, p in network.named_parameters() if p.grad is not None and p.grad.any()]
    # All except those that enlarge the features; a last layer of zeros may hide some more.
    assert len(learns) > 0.8 * len(list(network.parameters()))
    assert torch.isfinite(sr).all()


@pytest.mark.parametrize("name", names("fedvsr.models"))
def test_only_parameters_learn(name: str) -> None:
    """Buffers are constants of the architecture, so they need not travel."""
    networks = []
    for seed in (1, 2):
        with scoped_torch(seed, 1):
            networks.append(models.build_fresh(demo(name)).train())
    networks[0](sample(demo(name)))
    buffers = [dict(network.named_buffers()) for network in networks]
    assert buffers[0].keys() == buffers[1].keys()
    for key in buffers[0]:
        assert torch.equal(buffers[0][key], buffers[1][key]), key


@pytest.mark.parametrize("name", names("fedvsr.models"))
def test_fedvsr_trains_every_network(name: str, tmp_path: Path) -> None:
    config = demo(name)
    rules = model_spec(config)
    crop = rules.scale * max(16, rules.min_size)
    num_frames = max(4, rules.min_frames)
    write_video(tmp_path / "a.mp4", moving_texture(num_frames=8, height=crop, width=crop))
    data = DataConfig(
        videos=(str(tmp_path / "a.mp4"),),
        clip_frames=num_frames,
        num_clients=1,
        cache_dir=str(tmp_path),
    )
    clips = prepare(data, 0, lambda *_: None).train
    local = LocalConfig(steps=2, batch_size=1, num_frames=num_frames, crop=crop, lr=1e-3)
    trainer = LocalTrainer(config, fedvsr.Config(), local)
    params = flatten(trainer.network)
    task = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=0)
    report, update = trainer.train(task, {"params": params}, {}, clips)
    assert report.loss > report.vsr_loss > 0
    assert update.state == {}
    table = ParamTable.of(trainer.network)
    before, after = table.views(params), table.views(update.upload["params"])
    still = [key for key in before if (before[key] == after[key]).all()]
    unused = {key for key, p in trainer.network.named_parameters() if p.grad is None}
    assert set(still) <= unused
