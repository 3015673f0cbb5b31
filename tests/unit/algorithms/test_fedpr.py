"""FedPR: prompts of a frozen network, and where they may move."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file

from fedvsr import models
from fedvsr.algorithms import fedpr
from fedvsr.algorithms.base import LocalRound
from fedvsr.config import ExperimentConfig
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.messages import ClientTask
from fedvsr.models import iart, vrt
from fedvsr.runs.launch import prepare_data, require_weights
from fedvsr.training.checkpoint import save_model
from fedvsr.training.local import LocalTrainer
from tests.golden import recipe
from tests.unit.algorithms.test_fedmri import square
from tests.unit.algorithms.test_parts import run

# The smallest network with window attention, and samples of 32 low-resolution pixels.
SMALL = {"name": "iart", "mid_channels": 8, "embed_dim": 12, "depths": (1,), "num_heads": (2,)}
ADAPTER = {"kind": "prompt", "tokens": 3}
LOCAL = {"steps": 1, "batch_size": 1, "num_frames": 3, "crop": 128, "lr": 0.1}


def test_projector_by_hand() -> None:
    # P^T P has the singular values 9, 4, 1 and 0.25; the first half of the directions is dropped.
    within = fedpr.projector(torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5])), 0.5)
    expected = torch.diag(torch.tensor([0.0, 0.0, 1.0, 1.0])) / 2**0.5
    torch.testing.assert_close(within, expected)


def test_projector_keeps_its_part_of_all_channels() -> None:
    # 2 tokens of 5 channels: 0.8 of 5 directions stay, among them those that P does not reach.
    prompt = torch.tensor([[0.0, 5.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0, 0.0]])
    within = fedpr.projector(prompt, 0.8)
    torch.testing.assert_close(within, torch.diag(torch.tensor([1.0, 0, 1, 1, 1])) / 2)
    assert torch.linalg.matrix_norm(within).item() == pytest.approx(1)
    all_of_them = fedpr.projector(prompt, 1)
    torch.testing.assert_close(all_of_them, torch.eye(5) / 5**0.5)


def test_steps_are_projected_from_the_second_round_on() -> None:
    server = torch.diag(torch.tensor([3.0, 2.0, 1.0, 0.5]))
    algorithm = fedpr.Algorithm(fedpr.Config(ratio=0.5))
    before = server + 1
    for round_idx, expected in ((1, [1.0, 1, 1, 1]), (2, [0, 0, 0.5**0.5, 0.5**0.5])):
        w = torch.nn.Parameter(before + 1)
        local = LocalRound([w], {"params": [server]}, {}, {}, 2, 2, round_idx=round_idx)
        with torch.no_grad():
            algorithm.correct_step(local, [before])
        torch.testing.assert_close(w.detach() - before, torch.tensor(expected).expand(4, 4))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a trained network."""
    folder = tmp_path_factory.mktemp("base")
    config = iart.Config(**{k: v for k, v in SMALL.items() if k != "name"})
    with scoped_torch(0, 1):
        network = models.build_fresh(config)
    recipe.fill(network)
    save_model(folder / "base.safetensors", network, config)
    square(folder, num_frames=16)
    return folder / "base.safetensors"


def prompted(small: ExperimentConfig, base: Path, **sections: Any) -> ExperimentConfig:
    settings = small.model_dump()
    settings["data"] |= {"videos": [str(base.parent / "square.mp4")], "num_clients": 2}
    settings["model"] = {**SMALL, "weights": str(base), "adapter": ADAPTER}
    settings["algorithm"] = {"name": "fedpr"}
    settings["local"] |= LOCAL
    settings["evaluation"] |= {"max_frames": 1, "every_rounds": 2}
    settings["federation"] |= {"num_rounds": 2, "clients_per_round": 1}
    return ExperimentConfig.model_validate(settings | sections)


def test_a_clients_second_round_moves_only_within_the_projector(
    small: ExperimentConfig, base: Path
) -> None:
    config = prompted(small, base)
    clips = prepare_data(config, lambda *_: None).train[:1]
    trainer = LocalTrainer(config.model, config.algorithm, config.local)
    params = trainer.parameters.values()
    task = ClientTask(client_id=0, round_idx=2, num_rounds=2, seed=1)
    _, update = trainer.train(task, {"params": params}, {}, clips)
    moved: Any = update.upload["params"] - params  # type: ignore[operator]
    assert moved.any()
    shape = (-1, 3, 12)
    for change, prompt in zip(moved.reshape(shape), params.reshape(shape), strict=True):
        within = fedpr.projector(torch.from_numpy(prompt), 0.8).numpy()
        # N is a projector over the root of the 10 directions that stay.
        np.testing.assert_allclose(change @ within * 10**0.5, change, atol=1e-5)


def test_a_run_sends_prompts_alone(small: ExperimentConfig, base: Path, tmp_path: Path) -> None:
    done, results = run(prompted(small, base), tmp_path)
    start, end = load_file(base), load_file(done.folder / "model.safetensors")
    prompts = set(end) - set(start)
    # 3 tokens of 12 channels, in each of the network's layers.
    sent = 3 * 12 * len(prompts)
    assert prompts
    assert results.runs["num_shared_params"].tolist() == [sent]
    assert set(results.clients["upload_bytes"]) == {4 * sent}
    rows = results.rounds[results.rounds["round_idx"] > 0]
    assert (rows["download_bytes"] / rows["num_sampled"]).tolist() == [4 * sent] * 2
    assert all(np.array_equal(end[name], value) for name, value in start.items())


def test_what_it_needs_is_said_in_a_line(small: ExperimentConfig, base: Path) -> None:
    bare = {**SMALL, "weights": str(base)}
    with pytest.raises(ValidationError, match=r"fedpr learns prompts of a trained network: give"):
        prompted(small, base, model=bare)
    config = prompted(small, base, model={**SMALL, "adapter": ADAPTER})
    with pytest.raises(UserError, match=r"and model\.weights is missing: give a trained network"):
        require_weights(config)
    require_weights(prompted(small, base))


def test_prompts_may_be_averaged_by_other_methods(small: ExperimentConfig, base: Path) -> None:
    config = prompted(small, base, algorithm={"name": "fedprox"})
    trainer = LocalTrainer(config.model, config.algorithm, config.local)
    assert trainer.parameters.values().size % (3 * 12) == 0


@pytest.mark.slow
def test_it_runs_on_a_paper_network(small: ExperimentConfig, base: Path, tmp_path: Path) -> None:
    plain = {"name": "vrt", "size": "demo"}
    network = models.build(**plain)
    recipe.fill(network)
    weights = tmp_path / "vrt.safetensors"
    save_model(weights, network, vrt.Config(size="demo"))
    model = {**plain, "weights": str(weights), "adapter": {"kind": "prompt"}}
    local = small.local.model_dump() | {**LOCAL, "num_frames": 4}
    done, results = run(prompted(small, base, model=model, local=local), tmp_path)
    prompts = load_file(done.folder / "model.safetensors").keys() - load_file(weights).keys()
    # 20 tokens of two layers in each of 7 stages of 24 channels, and of 2 groups of 32.
    assert len(prompts) == 18
    assert set(results.clients["upload_bytes"]) == {4 * 20 * 2 * (7 * 24 + 2 * 32)}
    assert np.isfinite(results.evaluations["psnr_db"]).all()
