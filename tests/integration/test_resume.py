"""A run killed with SIGKILL and resumed ends in the bits of one that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from fedvsr.records import load_results
from fedvsr.runs.run import run_status
from tests.integration.commands import (
    ENDLESS,
    run_command,
    run_to_end,
    start_run,
    wait_for_round,
    wait_until_stopped,
    wait_while_it_runs,
)
from tests.integration.equality import assert_equal_runs
from tests.unit.runs.test_logged import in_tensorboard

SERIAL = ("--executor", "serial")


def kill_after(source: Path, out: Path, num_rounds: int, delay_s: float, *extra: str) -> None:
    """Start or resume, and kill once `num_rounds` rounds are recorded and `delay_s` has passed."""
    process = subprocess.Popen(
        run_command(source, out, *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    # The run's own reader opens a file once; pandas does so twice, between which it may change.
    wait_while_it_runs(
        process,
        lambda: out.is_dir() and load_results(out).rounds["round_idx"].max() >= num_rounds,
        limit_s=120,
    )
    time.sleep(delay_s)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


@pytest.mark.full
def test_a_serial_run_killed_twice_and_resumed_ends_in_the_same_bits(
    small_yaml: Path, tmp_path: Path, undisturbed_long: Path
) -> None:
    extra = [*SERIAL, "--set", "checkpoint.every_rounds=2"]
    kill_after(small_yaml, tmp_path, 0, 0.05, *extra)
    kill_after(small_yaml, tmp_path, 3, 0.1, *extra, "--resume")
    (folder,) = tmp_path.iterdir()
    before = load_results(folder).rounds
    assert before["round_idx"].tolist()[:4] == [0, 1, 2, 3], "recorded rounds were lost"
    assert run_to_end(small_yaml, tmp_path, *extra, "--resume") == folder
    assert_equal_runs(undisturbed_long, folder)


@pytest.mark.ray
def test_a_run_killed_on_ray_and_resumed_ends_in_the_same_bits(
    small_yaml: Path, tmp_path: Path, undisturbed_long: Path
) -> None:
    logged = ("--set", "logging.tensorboard=true", "--set", "cluster.isolation=client")
    kill_after(small_yaml, tmp_path, 2, 0.1, *logged)
    (folder,) = tmp_path.iterdir()
    wait_until_stopped(folder)
    assert run_status(folder) == "stopped"
    assert run_to_end(small_yaml, tmp_path, *logged, "--resume") == folder
    assert_equal_runs(undisturbed_long, folder)
    # In another process, which is killed too and resumes: each round once.
    assert [i for i, _ in in_tensorboard(folder)["test/held-out/ssim"]] == list(range(6))


def test_two_processes_never_write_one_run(small_yaml: Path, tmp_path: Path) -> None:
    extra = [*SERIAL, *ENDLESS]
    first = start_run(small_yaml, tmp_path, *extra)
    try:
        wait_for_round(first, 0)
        second = subprocess.run(
            run_command(small_yaml, tmp_path, *extra, "--resume"),
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert second.returncode == 2
        assert "error: another process is writing" in second.stderr
    finally:
        first.kill()
        first.communicate()
    (folder,) = tmp_path.iterdir()
    assert pd.read_parquet(folder / "runs.parquet")["status"].tolist() == ["running"], (
        "the second process must not touch the first one's record"
    )


def test_ctrl_c_prints_the_command_that_resumes(small_yaml: Path, tmp_path: Path) -> None:
    process = start_run(small_yaml, tmp_path, *SERIAL, *ENDLESS)
    wait_for_round(process, 0)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    printed, errors = process.communicate(timeout=30)
    assert process.returncode == 130, printed + errors
    assert "stopped; resume with: fedvsr run" in printed
    assert "--set federation.num_rounds=5000" in printed
    assert printed.rstrip().endswith("--resume")
    (folder,) = tmp_path.iterdir()
    assert pd.read_parquet(folder / "runs.parquet")["status"].tolist() == ["interrupted"]
