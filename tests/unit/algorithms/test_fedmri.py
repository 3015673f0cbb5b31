"""FedMRI: averaged encoders, and their contrast."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from fedvsr.algorithms import fedmri
from fedvsr.algorithms.base import LocalRound
from fedvsr.config import ExperimentConfig
from fedvsr.messages import Round
from fedvsr.params import split_rows
from fedvsr.training import checkpoint
from fedvsr.training.local import LocalTrainer
from tests.conftest import moving_texture, write_video
from tests.unit.algorithms.test_parts import run


def with_contrast(config: ExperimentConfig, **settings: object) -> ExperimentConfig:
    section = {"name": "fedmri", **settings}
    return ExperimentConfig.model_validate(config.model_dump() | {"algorithm": section})


def square(folder: Path, num_frames: int = 24) -> Path:
    """A video that is as large as the crop which a paper network needs."""
    frames = moving_texture(num_frames=num_frames, height=128, width=128)
    write_video(folder / "square.mp4", frames)
    return folder / "square.mp4"


def corrected(
    beta: float, params: list[Tensor], server: list[Tensor], previous: list[Tensor]
) -> float:
    """Set the gradients to those of the contrast; returns its part of the loss."""
    algorithm = fedmri.Algorithm(fedmri.Config(beta=beta))
    shared = {"params": server, "previous": previous}
    return algorithm.correct_gradients(LocalRound(params, shared, {}, {}, 1, 1), 0)


def test_contrast_by_hand() -> None:
    # w = (1, 2), the server's (0, 2), the clients' (3, 2) and (1, 0): R = 1 / (2 + 2).
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    w.grad = torch.zeros(2)
    args = [w], [torch.tensor([0.0, 2.0])], [torch.tensor([[3.0, 2.0], [1.0, 0.0]])]
    # But for the constant below, which float64 can tell.
    assert corrected(1, *args) == pytest.approx(0.25, rel=1e-12)
    # sign(w - s) / D - R / D * the sum of signs: (1, 0) / 4 - (-1, 1) / 16.
    assert w.grad.tolist() == [0.3125, -0.0625]
    assert corrected(2, *args) == pytest.approx(0.5, rel=1e-12)
    assert w.grad.tolist() == [0.9375, -0.1875], "added to the gradient, beta times"
    # No client has sent anything before the second round.
    assert corrected(1, [w], args[1], [torch.empty(0, 2)]) == 0
    assert w.grad.tolist() == [0.9375, -0.1875]


def test_contrast_is_that_of_all_tensors_and_changes_those_that_learn() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = (3, 2), (4,)
    params, server = (
        [torch.nn.Parameter(torch.randn(s, generator=draw)) for s in shapes] for _ in range(2)
    )
    previous = [torch.randn(5, *s, generator=draw) for s in shapes]
    pairs = zip(params, server, previous, strict=True)
    sums = [torch.stack(((p - s).abs().sum(), (p - v).abs().sum())) for p, s, v in pairs]
    near, far = torch.stack(sums).sum(0)
    term = 7 * near / far
    expected = torch.autograd.grad(term, params)
    params[0].grad = torch.ones(3, 2)
    got = corrected(7, params, [s.detach() for s in server], previous)
    assert got == pytest.approx(term.item(), rel=1e-6)
    assert params[0].grad is not None
    torch.testing.assert_close(params[0].grad, 1 + expected[0])
    assert params[1].grad is None


def test_a_client_alone_is_not_pulled_apart() -> None:
    # Its own last encoder is the server's, so that both distances are zero at its first step.
    w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    w.grad = torch.zeros(2)
    assert corrected(100, [w], [w.detach().clone()], [w.detach().clone()[None]]) == 0
    assert w.grad.tolist() == [0, 0]


def test_the_server_keeps_a_copy_of_each_upload() -> None:
    algorithm = fedmri.Algorithm(fedmri.Config())
    server = {"params": np.zeros(2, np.float32), "previous": np.empty(0, np.float32)}
    page = np.empty(2, np.float32)

    def uploads():  # type: ignore[no-untyped-def]
        # One at a time, in the same memory, as they come from shared memory.
        for values in ([3, 2], [1, 0]):
            page[:] = values
            yield {"params": page}

    info = Round(1, 3, 4, 2, (slice(0, 2),))
    mean = algorithm.aggregate(uploads(), algorithm.weights([None, None], 3), server, info)  # type: ignore[list-item]
    after = algorithm.server_step(server, mean.vectors, info)
    assert after["params"].tolist() == [2, 1]
    assert after["previous"].tolist() == [3, 2, 1, 0]
    # Nothing is kept for a contrast that is not wanted.
    plain = fedmri.Algorithm(fedmri.Config(beta=0))
    mean = plain.aggregate(uploads(), [0.5, 0.5], server, info)
    assert not plain.server_step(server, mean.vectors, info)["previous"].size


def test_vectors_of_clients_become_tensors_with_the_clients_in_front() -> None:
    params = [torch.nn.Parameter(torch.empty(shape)) for shape in ((2,), (1, 3))]
    # Client 0 has the values 0 to 4, client 1 the values 5 to 9.
    first, second = split_rows(params, np.arange(10, dtype=np.float32))
    assert first.tolist() == [[0, 1], [5, 6]]
    assert second.tolist() == [[[2, 3, 4]], [[7, 8, 9]]]
    none = split_rows(params, np.empty(0, np.float32))
    assert [tuple(tensor.shape) for tensor in none] == [(0, 2), (0, 1, 3)]


def test_a_run_sends_encoders_alone_and_each_of_the_last_round_to_all(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    config = with_contrast(small)
    whole, results = run(config, tmp_path / "whole")
    encoder = int(results.runs["num_shared_params"][0])
    assert set(results.clients["upload_bytes"]) == {4 * encoder}
    rows = results.rounds[results.rounds["round_idx"] > 0]
    per_client = rows["download_bytes"] / rows["num_sampled"] / (4 * encoder)
    # Two clients a round: with the server's encoder, three from the second round on.
    assert per_client.tolist() == [1, 3, 3]
    stopped, _ = run(config, tmp_path / "stopped", rounds=1)
    files = sorted((whole.folder / "clients").glob("*.safetensors"))
    assert len(files) == config.data.num_clients
    for path in files:
        assert path.read_bytes() == (stopped.folder / "clients" / path.name).read_bytes()
    # A mean of two in float32, halved exactly: the last uploads are those of the last mean.
    table = LocalTrainer(config.model, config.algorithm, config.local).layout
    folder = whole.folder / "checkpoints"
    saved = checkpoint.read(folder, 3, table.table, config.config_hash()).server
    previous = saved["previous"].reshape(2, encoder)
    mean = previous[0] * np.float32(0.5) + previous[1] * np.float32(0.5)
    assert mean.tobytes() == table.take(saved["params"], "shared").tobytes()


def test_a_note_says_who_sees_what(small: ExperimentConfig) -> None:
    notes = with_contrast(small).algorithm.notes()
    assert "sends each client what every client of the last round has sent" in notes[0]
    assert not with_contrast(small, beta=0).algorithm.notes()
    private = small.model_dump() | {"update": {"clip_norm": 1, "noise_multiplier": 1}}
    with pytest.raises(ValidationError, match="name = fedmri takes more from a client"):
        ExperimentConfig.model_validate(private | {"algorithm": {"name": "fedmri"}})


@pytest.mark.slow
def test_it_runs_on_a_paper_network(small: ExperimentConfig, tmp_path: Path) -> None:
    settings = with_contrast(small).model_dump()
    settings["model"] = {"name": "rvrt", "size": "demo"}
    settings["data"]["videos"] = [str(square(tmp_path))]
    settings["local"] |= {"steps": 1, "batch_size": 1, "num_frames": 4, "crop": 128}
    settings["federation"]["num_rounds"] = 2
    done, results = run(ExperimentConfig.model_validate(settings), tmp_path)
    counts = results.runs[["num_params", "num_shared_params"]].iloc[0].tolist()
    assert 0 < counts[1] < counts[0]
    assert np.isfinite(results.evaluations["psnr_db"]).all()
    assert sorted((done.folder / "clients").glob("*.safetensors"))
