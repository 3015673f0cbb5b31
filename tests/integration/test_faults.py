"""Whatever fails, a run ends in the bits of an undisturbed one, and its record tells the faults."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.errors import UserError
from fedvsr.federation.executors import Clients, SerialExecutor
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.records import load_results
from fedvsr.runs.events import RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run, run_status
from tests.integration.equality import assert_equal_runs
from tests.integration.faulty import Failure, FaultyExecutor
from tests.integration.running import faults_in, on_ray, split_of, with_cluster

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROUND = 2


@pytest.fixture(scope="module")
def victims(undisturbed: Path) -> dict[int, int]:
    """The client that fails in each round: the first that was sampled."""
    clients = load_results(undisturbed).clients
    return {int(k): int(v) for k, v in clients.groupby("round_idx")["client_id"].first().items()}


@pytest.mark.full
def test_clients_that_die_raise_and_hang_cost_no_bit(
    small: ExperimentConfig, undisturbed: Path, victims: dict[int, int], tmp_path: Path
) -> None:
    """One failure a round, each of another kind."""
    kinds = {"die": "died", "raise": "raised", "hang": "timeout"}
    failures = [
        Failure(how, victims[round_idx], round_idx, tmp_path / how)
        for round_idx, how in enumerate(kinds, 1)
    ]
    config = with_cluster(small, slots=2, client_timeout_s=30.0)
    run = create_run(config, tmp_path / "out")
    events = list(on_ray(run, FaultyExecutor(*failures)))
    assert_equal_runs(undisturbed, run.folder)
    expected = [(kinds[f.how], f.client_id, f.round_idx) for f in failures]
    assert [(f.kind, f.client_id, f.round_idx) for f in faults_in(events)] == expected
    results = load_results(run.folder)
    rows = results.faults.to_dict("records")
    assert [(row["kind"], row["client_id"], row["round_idx"]) for row in rows] == expected
    for failure, row in zip(failures, rows, strict=True):
        assert failure.marker.exists(), "it did not fail"
        assert (row["attempt"], row["final"]) == (1, False)
        assert row["node"]
        assert row["lost_s"] > 0
        if failure.how == "raise":
            assert "a loose cable" in row["message"]
            assert "_step" in row["traceback"], "the traceback of the client's process"
        own = results.clients["client_id"] == failure.client_id
        own &= results.clients["round_idx"] == failure.round_idx
        assert results.clients[own]["attempts"].tolist() == [2]


class TellingExecutor:
    """Makes the usual executor, and writes the process id of the driver to a file."""

    def __init__(self, pid_file: Path) -> None:
        self.pid_file = pid_file

    def __call__(self, clients: Clients, **arguments: Any) -> RayExecutor:
        self.pid_file.write_text(str(os.getpid()))
        return RayExecutor(clients, **arguments)


def test_a_run_whose_driver_is_killed_resumes_by_itself(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run = create_run(with_cluster(small, slots=2), tmp_path / "out")
    pid_file, was_killed = tmp_path / "pid", False
    for event in on_ray(run, TellingExecutor(pid_file)):
        if isinstance(event, RoundRecorded) and event.round_idx == 1 and not was_killed:
            was_killed = True
            os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert was_killed
    assert_equal_runs(undisturbed, run.folder)
    faults = load_results(run.folder).faults
    assert faults["kind"].tolist() == ["driver"]
    assert faults["client_id"].isna().all()


@pytest.mark.full
def test_a_round_closes_without_a_client_that_fails_for_good(
    small_yaml: Path, undisturbed: Path, victims: dict[int, int], tmp_path: Path
) -> None:
    """With a quorum, on Ray and serially; a client that diverges counts as one that is missing.

    On Ray the client of round 2 raises at every attempt, and that of round 3 diverges.
    """
    config = load_config(
        str(small_yaml), ["federation.min_updates=1", "update.reject_nonfinite=true"]
    )
    lost, diverged = 2, 3

    def failures(of_lost: str, of_diverged: str) -> list[Failure]:
        hows = {lost: of_lost, diverged: of_diverged}
        return [
            Failure(how, victims[i], i, tmp_path / f"{how}-{i}", always=True)
            for i, how in hows.items()
        ]

    run = create_run(with_cluster(config, slots=2, max_retries=1), tmp_path / "ray")
    list(on_ray(run, FaultyExecutor(*failures("raise", "nan"))))
    serial = create_run(config, tmp_path / "serial")
    faulty = FaultyExecutor(*failures("user_error", "user_error"))
    list(execute(serial, split_of(config), faulty.serial))
    assert weights(run.folder) == weights(serial.folder)
    assert weights(undisturbed) != weights(serial.folder)
    results, reference = load_results(run.folder), load_results(serial.folder)
    scores = ["round_idx", "loss", "psnr_db", "ssim"]
    pd.testing.assert_frame_equal(
        results.rounds[scores], reference.rounds[scores], check_exact=True
    )
    rounds = results.rounds.set_index("round_idx")
    counts = rounds[["num_sampled", "num_failed", "num_rejected"]]
    assert counts.loc[lost].tolist() == [2, 1, 0]
    assert counts.loc[diverged].tolist() == [2, 0, 1]
    faults = results.faults.groupby("round_idx")
    assert faults.get_group(lost)["kind"].tolist() == ["raised", "raised"]
    assert faults.get_group(lost)["final"].tolist() == [False, True]
    assert faults.get_group(diverged)["kind"].tolist() == ["not_finite"]
    assert reference.faults["message"].tolist() == ["clip 7 is damaged"] * 2


def weights(folder: Path) -> dict[str, bytes]:
    """The trained network's tensors, without the file's head, which names the run."""
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


@pytest.mark.full
def test_a_run_below_its_quorum_stops_with_its_state_saved(
    small: ExperimentConfig, undisturbed: Path, victims: dict[int, int], tmp_path: Path
) -> None:
    """It can be resumed once the reason is gone. A mistake in the data is not retried."""
    failure = Failure("user_error", victims[ROUND], ROUND, tmp_path / "marker", always=True)
    run = create_run(with_cluster(small, slots=2), tmp_path / "out")
    with pytest.raises(UserError, match=r"^clip 7 is damaged$"):
        list(on_ray(run, FaultyExecutor(failure)))
    assert run_status(run.folder) == "failed"
    results = load_results(run.folder)
    assert results.faults["final"].tolist() == [True]
    assert results.rounds["round_idx"].max() == ROUND - 1
    list(on_ray(run))
    assert_equal_runs(undisturbed, run.folder)


def test_a_run_with_a_truncated_checkpoint_resumes_from_the_one_before_and_notes_it(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run = create_run(small, tmp_path / "out")
    events = execute(run, split_of(small), SerialExecutor)
    for event in events:
        if isinstance(event, RoundRecorded) and event.round_idx == 2:
            break
    events.close()  # type: ignore[attr-defined]
    newest = sorted((run.folder / "checkpoints").glob("round-*"))[-1]
    newest.write_bytes(newest.read_bytes()[:1000])
    resumed = list(execute(run, split_of(small), SerialExecutor))
    (started,) = (event for event in resumed if isinstance(event, RunStarted))
    assert started.round_idx == 1
    assert started.notes[0].startswith(f"{newest} is damaged")
    assert_equal_runs(undisturbed, run.folder)
    assert pd.read_parquet(run.folder / "faults.parquet")["kind"].tolist() == ["checkpoint"]
