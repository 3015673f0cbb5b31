"""FedPer, FedRep and FedBN: a part of the network stays with each client."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.numpy import load_file
from torch.optim.optimizer import register_optimizer_step_post_hook

from fedvsr.algorithms import fedbn, fedper, fedrep
from fedvsr.algorithms.base import AlgorithmConfig
from fedvsr.config import ExperimentConfig
from fedvsr.contracts import samples
from fedvsr.lookup import load
from fedvsr.messages import ClientTask
from fedvsr.runs.launch import prepare_data
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from tests.conftest import MakeOnce
from tests.unit.algorithms.test_parts import changed, run

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=2, seed=5)


def small_clip(make_once: MakeOnce) -> Any:
    """A clip of the smallest size that the paper's networks take."""
    folder = make_once("contracts-128", lambda _: None)
    return samples.clips(folder, num_clips=1, clip_frames=4, height=128, width=128)[0]


@pytest.mark.parametrize("name", ["fedper", "fedrep"])
def test_heads_differ_between_clients_and_the_base_does_not(
    name: str, small: ExperimentConfig, tmp_path: Path
) -> None:
    config = changed(
        small,
        algorithm={"name": name, "keep": ["head"]},
        federation={"num_rounds": 1, "clients_per_round": 4},
        evaluation={"max_frames": 1},
    )
    done, results = run(config, tmp_path)
    networks = [load_file(path) for path in (done.folder / "clients").iterdir()]
    assert len(networks) == 4
    for key in networks[0]:
        values = {network[key].tobytes() for network in networks}
        assert len(values) == (4 if key.startswith("to_pixels") else 1), key
    size = sum(tensor.size for key, tensor in networks[0].items() if "to_pixels" not in key)
    assert set(results.clients["upload_bytes"]) == {4 * size}


def test_fedbn_keeps_the_norms_of_a_papers_network(tmp_path: Path) -> None:
    """A round of RVRT: the norms differ between clients, and nothing else does."""
    video = tmp_path / "texture.mp4"
    samples.write_video(video, samples.moving_texture(num_frames=6, height=128, width=128))
    config = ExperimentConfig.model_validate(
        {
            "name": "norms",
            "data": {
                "videos": [str(video)],
                "clip_frames": 2,
                "num_clients": 2,
                "cache_dir": str(tmp_path / "cache"),
            },
            "model": {"name": "rvrt", "size": "demo"},
            "algorithm": {"name": "fedbn"},
            "federation": {"num_rounds": 1, "clients_per_round": 2},
            "local": {"steps": 1, "batch_size": 1, "num_frames": 2, "crop": 128, "lr": 1e-3},
            "evaluation": {"max_frames": 2},
        }
    )
    done, results = run(config, tmp_path / "results")
    one, two = (load_file(path) for path in (done.folder / "clients").iterdir())
    differing = {key for key in one if one[key].tobytes() != two[key].tobytes()}
    assert differing
    # The names of layer norms: in blocks, and between groups of them.
    assert all("norm" in key or ".main." in key for key in differing)
    kept = sum(one[key].size for key in differing)
    total = int(results.runs["num_params"][0])
    assert set(results.clients["upload_bytes"]) == {4 * (total - kept)}
    assert len(results.evaluations.query("round_idx == 1")) == 2


def test_fedrep_trains_the_head_and_then_the_base(small: ExperimentConfig) -> None:
    clips = prepare_data(small, lambda *_: None).train[:1]
    local = small.local.model_copy(update={"steps": 6})
    trainer = LocalTrainer(small.model, fedrep.Config(), local)
    roles = dict(zip(trainer.network.parameters(), trainer.layout.roles, strict=True))
    before = {p: p.detach().clone() for p in roles}
    moved = list[set[str]]()

    def look(*_: object) -> None:
        moved.append({role for p, role in roles.items() if not torch.equal(p, before[p])})
        before.update({p: p.detach().clone() for p in roles})

    hook = register_optimizer_step_post_hook(look)
    try:
        trainer.train(TASK, {"params": trainer.parameters.values()}, {}, clips)
    finally:
        hook.remove()
    # Two thirds of six steps.
    assert moved == [{"own"}] * 4 + [{"shared"}] * 2


@pytest.mark.parametrize(
    ("head_share", "num_steps", "head_steps"),
    [(2 / 3, 20, 13), (2 / 3, 2, 1), (0.01, 10, 1), (0.99, 10, 9)],
)
def test_fedreps_steps(head_share: float, num_steps: int, head_steps: int) -> None:
    algorithm = fedrep.Algorithm(fedrep.Config(head_share=head_share))
    roles = [algorithm.learning(step, num_steps) for step in range(num_steps)]
    assert roles == [("own",)] * head_steps + [("shared",)] * (num_steps - head_steps)
    assert algorithm.learning(0, 1) == ("shared", "own")


@pytest.mark.parametrize("config", [fedper.Config(), fedrep.Config()])
def test_a_round_of_a_papers_network(config: AlgorithmConfig, make_once: MakeOnce) -> None:
    model = load("fedvsr.models", "iart").Config(size="demo")
    local = LocalConfig(steps=2, batch_size=1, num_frames=2, crop=128, lr=1e-3)
    trainer = LocalTrainer(model, config, local)
    before, own = trainer.parameters.values(), trainer.layout.table_of("own").size
    report, update = trainer.train(TASK, {"params": before}, {}, [small_clip(make_once)])
    assert report.upload_bytes == 4 * (trainer.layout.table.size - own)
    assert update.state["own"].size == own > 0
    assert update.upload["params"].tobytes() != before.tobytes()


@pytest.mark.parametrize("config", [fedper.Config, fedrep.Config, fedbn.Config])
def test_something_is_kept_and_keep_says_what(config: type[AlgorithmConfig]) -> None:
    with pytest.raises(ValidationError, match=r"leaves with clients .* give it a part"):
        config(keep=())
    with pytest.raises(ValidationError, match=r"give it instead of algorithm\.share"):
        config(share=("encoder",))


def test_fedbn_is_refused_for_a_network_without_norms(small: ExperimentConfig) -> None:
    with pytest.raises(ValidationError, match="'norm', which tiny has not"):
        changed(small, algorithm={"name": "fedbn", "keep": ["norm"]})
