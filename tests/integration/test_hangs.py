"""Parts of a cluster die or are stopped, and no command outlasts them."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.federation import pulse
from fedvsr.federation.executors import Clients
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.records import load_results
from fedvsr.runs.run import create_run
from tests.integration.commands import (
    endless_and_idle,
    heed_ctrl_c,
    run_to_end,
    start_run,
    wait_for_round,
    wait_until_stopped,
    wait_while_it_runs,
)
from tests.integration.equality import assert_equal_runs
from tests.integration.faulty import Failure, FaultyExecutor
from tests.integration.running import faults_in, on_ray
from tests.integration.test_sweep import rounds_done, sweep_file, tune_command

pytestmark = pytest.mark.ray


def signal_child(process: subprocess.Popen[str], name: str, number: signal.Signals) -> None:
    """Send a signal to the process of that name which a command has started."""
    children = psutil.Process(process.pid).children(recursive=True)
    (child,) = [c for c in children if c.name() == name]
    child.send_signal(number)


def assert_ended_by(process: subprocess.Popen[str], problem: str) -> None:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 2, errors
    assert errors.count("\n") == 1, "one line"
    assert errors.startswith(f"error: the Ray cluster is gone: {problem}")
    assert "finished rounds are saved: --resume continues" in errors


def test_a_run_whose_raylet_dies_ends_in_a_line_and_resumes(
    small_yaml: Path, tmp_path: Path, undisturbed_long: Path
) -> None:
    process = start_run(small_yaml, tmp_path)
    wait_for_round(process, 2)
    signal_child(process, "raylet", signal.SIGKILL)
    assert_ended_by(process, "Ray's process on this machine, the raylet, has died")
    (folder,) = tmp_path.iterdir()
    wait_until_stopped(folder)
    assert run_to_end(small_yaml, tmp_path, "--resume") == folder
    assert_equal_runs(undisturbed_long, folder)


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_run_whose_head_is_gone_saves_its_state_and_ends_in_a_line(
    number: signal.Signals, small_yaml: Path, tmp_path: Path
) -> None:
    settings = {**endless_and_idle(tmp_path), "checkpoint.every_rounds": 5000}
    more = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    process = start_run(small_yaml, tmp_path / "out", *more)
    wait_for_round(process, 1)
    signal_child(process, "gcs_server", number)
    assert_ended_by(process, "Ray's head process, the GCS, has died or cannot be reached")
    (folder,) = (tmp_path / "out").iterdir()
    assert load_results(folder).runs["status"].tolist() == ["failed"]
    assert len(list((folder / "checkpoints").glob("round-*.safetensors"))) == 1


@pytest.mark.full
@pytest.mark.timeout(600)
def test_a_sweep_whose_raylet_dies_ends_in_a_line_and_resumes(
    small_yaml: Path, tmp_path: Path
) -> None:
    """Ray Tune itself would wait without end."""
    file = sweep_file(small_yaml, tmp_path, set=endless_and_idle(tmp_path), executor="serial")
    folder = tmp_path / "sweeps" / "s"

    def started(after: int, *extra: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            tune_command(file, tmp_path, *extra),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=heed_ctrl_c,
        )
        wait_while_it_runs(
            process, lambda: max(rounds_done(folder).values(), default=0) > after, limit_s=100
        )
        return process

    process = started(0)
    signal_child(process, "raylet", signal.SIGKILL)
    assert_ended_by(process, "Ray's process on this machine, the raylet, has died")
    for run in (folder / "runs").iterdir():
        wait_until_stopped(run)
    process = started(max(rounds_done(folder).values()), "--resume")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=100)
    assert (process.returncode, errors) == (130, "")


class Stopping:
    """Makes executors in whose first process something stops; a `make_executor`."""

    def __init__(self, what: str, marker: Path, victim: int = 0) -> None:
        self.what, self.marker, self.victim = what, marker, victim

    def __call__(self, clients: Clients, **arguments: Any) -> RayExecutor:
        pulse.SILENT_S = 4.0
        if self.what == "client":
            failure = Failure("stop", self.victim, 2, self.marker)
            return FaultyExecutor(failure)(clients, **arguments)
        if self.what == "driver" and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGSTOP)
        executor = RayExecutor(clients, **arguments)
        if self.what == "evaluator":
            executor.start_scorer = self._start_scorer(executor)  # type: ignore[method-assign]
        return executor

    def _start_scorer(self, executor: RayExecutor) -> Any:
        def start(make: Any) -> Any:
            scorer = RayExecutor.start_scorer(executor, make)
            if not self.marker.exists():
                self.marker.touch()
                scorer.actor.__ray_call__.remote(_stop_oneself)  # type: ignore[attr-defined]
            return scorer

        return start


def _stop_oneself(_: object) -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


@pytest.mark.full
@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize("what", ["client", "evaluator", "driver"])
def test_a_process_that_is_stopped_is_replaced_and_costs_no_bit(
    what: str,
    small: ExperimentConfig,
    undisturbed: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also without `cluster.client_timeout_s`, because a process that computes answers."""
    monkeypatch.setattr(pulse, "SILENT_S", 4.0)
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 2]["client_id"].iloc[0])
    run = create_run(small, tmp_path)
    events = list(on_ray(run, Stopping(what, tmp_path / "stopped", victim)))
    assert (tmp_path / "stopped").exists()
    assert_equal_runs(undisturbed, run.folder)
    if what != "driver":
        (fault,) = faults_in(events)
        assert (fault.kind, fault.final) == ("timeout", False)
        assert "has not answered for 4 s" in fault.message
