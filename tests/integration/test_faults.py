"""Whatever fails, a run ends in the bits of one in which nothing did, and its record says what."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from safetensors.numpy import load_file

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.split import Split
from fedvsr.errors import UserError
from fedvsr.federation import driver
from fedvsr.federation.executors import Clients, SerialExecutor
from fedvsr.records import load_results
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run, run_status
from tests.integration.equality import assert_equal_runs
from tests.integration.faulty import Failure, FaultyClients, FaultyExecutor
from tests.integration.running import (
    drive,
    faults_in,
    placed,
    run_serially,
    split_of,
    start,
    with_cluster,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("local_ray")]

ROUND = 2


@pytest.fixture(scope="module")
def undisturbed(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_serially(load_config(str(small_yaml)), tmp_path_factory.mktemp("serial"))


@pytest.fixture(scope="module")
def victim(undisturbed: Path) -> int:
    """The first client of the round in which things go wrong."""
    clients = load_results(undisturbed).clients
    return int(clients[clients["round_idx"] == ROUND]["client_id"].iloc[0])


@pytest.mark.parametrize(
    ("how", "kind", "settings"),
    [
        ("die", "died", {}),
        ("raise", "raised", {}),
        ("hang", "timeout", {"client_timeout_s": 20.0}),
    ],
)
def test_a_client_that_fails_costs_no_bit(
    how: str,
    kind: str,
    settings: dict[str, Any],
    small: ExperimentConfig,
    undisturbed: Path,
    victim: int,
    tmp_path: Path,
) -> None:
    failure = Failure(how, victim, ROUND, tmp_path / "marker")
    config = with_cluster(small, slots=2, **settings)
    run = create_run(config, tmp_path / "out")
    events = drive(run, config, FaultyExecutor(failure))
    assert failure.marker.exists()
    (fault,) = faults_in(events)
    assert (fault.kind, fault.client_id, fault.round_idx) == (kind, victim, ROUND)
    assert_equal_runs(undisturbed, run.folder)
    (row,) = load_results(run.folder).faults.to_dict("records")
    assert (row["kind"], row["client_id"], row["attempt"], row["final"]) == (kind, victim, 1, False)
    assert row["node"]
    assert row["lost_s"] > 0
    if how == "raise":
        assert "a loose cable" in row["message"]
        assert "_loss" in row["traceback"], "the traceback of the client's process"
    clients = load_results(run.folder).clients
    again = clients[(clients["client_id"] == victim) & (clients["round_idx"] == ROUND)]
    assert again["attempts"].tolist() == [2]


def test_the_driver_killed_resumes_by_itself(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    config = with_cluster(small, slots=2)
    run = create_run(config, tmp_path / "out")
    pid_file, killed = tmp_path / "pid", False
    with placed(config.cluster) as where:
        begin = partial(start_and_tell, pid_file, run, split_of(config), config.cluster, where)
        for event in driver.drive(begin, where, max_restarts=1):
            if isinstance(event, RoundRecorded) and event.round_idx == 1 and not killed:
                killed = True
                os.kill(int(pid_file.read_text()), signal.SIGKILL)
    assert_equal_runs(undisturbed, run.folder)
    faults = load_results(run.folder).faults
    assert faults["kind"].tolist() == ["driver"]
    assert faults["client_id"].isna().all()


def start_and_tell(
    pid_file: Path, run: Any, split: Split, cluster: Any, where: Any, stop: threading.Event
) -> Iterator[Event]:
    pid_file.write_text(str(os.getpid()))
    kind: Any = FaultyExecutor(Failure("raise", -1, -1, pid_file))
    return start(run, split, cluster, where, kind, stop)


def test_a_client_that_fails_for_good_is_done_without(
    small_yaml: Path, undisturbed: Path, victim: int, tmp_path: Path
) -> None:
    """By a quorum, on Ray and serially; and a client that diverges counts as one that is not there.

    Only the last round is compared, which the victim may not be drawn in again.
    """
    config = load_config(
        str(small_yaml), ["federation.min_updates=1", "update.reject_nonfinite=true"]
    )
    folders = dict[str, Path]()
    for how in ("raise", "nan", "serial"):
        failure = Failure(
            "mistake" if how == "serial" else how, victim, ROUND, tmp_path / how, always=True
        )
        run = create_run(config, tmp_path / "out")
        folders[how] = run.folder
        if how == "serial":
            list(execute(run, split_of(config), partial(serially, failure)))
        else:
            drive(run, with_cluster(config, slots=2, max_retries=1), FaultyExecutor(failure))
    networks = {how: weights(path) for how, path in folders.items()}
    assert networks["raise"] == networks["nan"] == networks["serial"]
    assert weights(undisturbed) != networks["serial"]
    tables = {how: load_results(path) for how, path in folders.items()}
    last = tables["raise"].rounds.set_index("round_idx").loc[ROUND]
    assert (last["num_sampled"], last["num_failed"], last["num_rejected"]) == (2, 1, 0)
    faults = tables["raise"].faults
    assert faults["final"].tolist() == [False, True]
    assert tables["nan"].faults["kind"].tolist() == ["not_finite"]
    assert tables["nan"].rounds.set_index("round_idx").loc[ROUND, "num_rejected"] == 1
    assert tables["serial"].faults["message"].tolist() == ["clip 7 is damaged"]


def weights(folder: Path) -> dict[str, bytes]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.tobytes() for name, tensor in tensors.items()}


def serially(failure: Failure, clients: Clients) -> SerialExecutor:
    return SerialExecutor(FaultyClients(**vars(clients), failure=failure))


def test_below_the_quorum_a_run_stops_with_its_state_saved(
    small: ExperimentConfig, undisturbed: Path, victim: int, tmp_path: Path
) -> None:
    """And goes on where the reason is gone; a mistake in the data is not tried twice."""
    failure = Failure("mistake", victim, ROUND, tmp_path / "marker", always=True)
    config = with_cluster(small, slots=2)
    run = create_run(config, tmp_path / "out")
    with pytest.raises(UserError, match=r"^clip 7 is damaged$"):
        drive(run, config, FaultyExecutor(failure))
    assert run_status(run.folder) == "failed"
    results = load_results(run.folder)
    assert results.faults["final"].tolist() == [True]
    assert results.rounds["round_idx"].max() == ROUND - 1
    drive(run, config)
    assert_equal_runs(undisturbed, run.folder)


def test_a_truncated_checkpoint_falls_back_and_says_so(
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
