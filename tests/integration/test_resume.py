"""A run killed with SIGKILL and resumed ends in the bits of one that never stopped."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from fedvsr.records import load_results
from tests.integration.equality import assert_equal_runs

# Enough work per round that a kill lands inside one.
SETTINGS = ["federation.num_rounds=5", "local.steps=25"]


def command(source: Path, out: Path, *extra: str) -> list[str]:
    settings = [flag for setting in SETTINGS for flag in ("--set", setting)]
    return [
        sys.executable,
        "-m",
        "fedvsr",
        "run",
        str(source),
        "--out",
        str(out),
        *settings,
        *extra,
    ]


def run(source: Path, out: Path, *extra: str) -> Path:
    done = subprocess.run(command(source, out, *extra), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = out.iterdir()
    return folder


def kill_after(source: Path, out: Path, num_rounds: int, delay_s: float, *extra: str) -> None:
    """Start or resume, and kill once `num_rounds` rounds are recorded and `delay_s` has passed."""
    process = subprocess.Popen(
        command(source, out, *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        # The run's own reader opens a file once; pandas does so twice, between which it may change.
        if out.is_dir() and load_results(out).rounds["round_idx"].max() >= num_rounds:
            break
        time.sleep(0.02)
    time.sleep(delay_s)
    assert process.poll() is None, "the run ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def wait_for_round_0(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    assert any(line.startswith("round 0/5") for line in process.stdout)


def wait_until_unlocked(out: Path) -> None:
    """Ray's processes follow their killed head within seconds, the one that writes the run too."""
    from fedvsr.runs.run import run_status

    (folder,) = out.iterdir()
    deadline = time.monotonic() + 60
    while run_status(folder) == "running" and time.monotonic() < deadline:
        time.sleep(0.1)
    assert run_status(folder) == "stopped"


@pytest.fixture(scope="module")
def undisturbed(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(small_yaml, tmp_path_factory.mktemp("whole"), "--executor", "serial")


def test_serial_run_killed_twice(small_yaml: Path, tmp_path: Path, undisturbed: Path) -> None:
    serial = ["--executor", "serial", "--set", "checkpoint.every_rounds=2"]
    kill_after(small_yaml, tmp_path, 0, 0.05, *serial)
    kill_after(small_yaml, tmp_path, 3, 0.1, *serial, "--resume")
    (folder,) = tmp_path.iterdir()
    before = pd.read_parquet(folder / "rounds.parquet")
    assert before["round_idx"].tolist()[:4] == [0, 1, 2, 3], "recorded rounds were lost"
    assert run(small_yaml, tmp_path, *serial, "--resume") == folder
    assert_equal_runs(undisturbed, folder)


@pytest.mark.ray
def test_ray_run_killed(small_yaml: Path, tmp_path: Path, undisturbed: Path) -> None:
    kill_after(small_yaml, tmp_path, 2, 0.1)
    wait_until_unlocked(tmp_path)
    folder = run(small_yaml, tmp_path, "--resume")
    assert_equal_runs(undisturbed, folder)


def test_two_processes_never_write_one_run(small_yaml: Path, tmp_path: Path) -> None:
    first = subprocess.Popen(
        command(small_yaml, tmp_path, "--executor", "serial", "--set", "local.steps=2000"),
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        wait_for_round_0(first)
        extra = ["--executor", "serial", "--set", "local.steps=2000", "--resume"]
        second = subprocess.run(
            command(small_yaml, tmp_path, *extra), capture_output=True, text=True, timeout=60
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


def test_ctrl_c_prints_how_to_go_on(small_yaml: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(small_yaml, tmp_path, "--executor", "serial", "--set", "local.steps=2000"),
        stdout=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_round_0(process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=30)
    assert process.returncode == 130, printed
    assert "stopped; go on with: fedvsr run" in printed
    assert "--set local.steps=2000" in printed
    assert printed.rstrip().endswith("--resume")
    (folder,) = tmp_path.iterdir()
    assert pd.read_parquet(folder / "runs.parquet")["status"].tolist() == ["interrupted"]
