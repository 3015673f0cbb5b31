"""Runs that are stopped, killed at any moment, or run out of disk."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from fedvsr.records import load_results, read_run
from fedvsr.runs.run import run_status
from tests.integration.commands import (
    ENDLESS,
    run_command,
    run_to_end,
    start_run,
    wait_for_round,
    wait_until_stopped,
)
from tests.integration.equality import assert_equal_runs

pytestmark = pytest.mark.ray


@pytest.mark.full
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM], ids=["SIGINT", "SIGTERM"])
def test_a_stopped_run_saves_its_last_round_and_leaves_no_process_behind(
    how: signal.Signals, small_yaml: Path, tmp_path: Path
) -> None:
    """Also rounds after the last checkpoint that was due."""
    process = start_run(small_yaml, tmp_path, *ENDLESS, "--set", "checkpoint.every_rounds=100")
    wait_for_round(process, 1)
    started = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert started
    process.send_signal(how)
    printed, errors = process.communicate(timeout=100)
    assert process.returncode == 130, printed + errors
    assert "stopped; resume with: fedvsr run" in printed
    (folder,) = tmp_path.iterdir()
    assert run_status(folder) == "interrupted"
    last_round = load_results(folder).rounds["round_idx"].max()
    (saved,) = (folder / "checkpoints").glob("round-*")
    assert saved.name == f"round-{last_round:06d}.safetensors"
    deadline = time.monotonic() + 20
    while started & set(psutil.pids()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not started & set(psutil.pids()), "processes outlived the command"


def kill_at_random(small_yaml: Path, folder: Path, undisturbed: Path, num_kills: int) -> None:
    """Kill runs `num_kills` times; every run ends in the bits of an undisturbed one."""
    rng, remaining = random.Random(0), num_kills
    while remaining:
        out = folder / str(remaining)
        while remaining and not is_finished(out):
            process = subprocess.Popen(
                run_command(small_yaml, out, *resume_if_begun(out)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # Between the moment before the first file is written and the middle of a later round.
            time.sleep(rng.uniform(2, 10))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                remaining -= 1
            process.wait()
            for path in out.glob("*/.lock"):
                wait_until_stopped(path.parent)
        if not is_finished(out):
            command = run_command(small_yaml, out, *resume_if_begun(out))
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=200)
        (run_folder,) = (path.parent for path in out.glob("*/config.yaml"))
        assert_equal_runs(undisturbed, run_folder)
        # A kill may cut off the line that is being written, and damages no other.
        lines = (run_folder / "events.jsonl").read_text().splitlines()
        whole = [line for line in lines if is_json(line)]
        assert len(lines) - len(whole) <= num_kills
        assert {json.loads(line)["run_id"] for line in whole} == {run_folder.name}


def is_json(line: str) -> bool:
    try:
        json.loads(line)
    except json.JSONDecodeError:
        return False
    return True


def is_finished(out: Path) -> bool:
    return any(run_status(path.parent) == "finished" for path in out.glob("*/config.yaml"))


def resume_if_begun(out: Path) -> list[str]:
    return ["--resume"] if any(out.glob("*/config.yaml")) else []


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_run_killed_at_twenty_random_moments_ends_in_the_same_bits(
    small_yaml: Path, tmp_path: Path, undisturbed_long: Path
) -> None:
    kill_at_random(small_yaml, tmp_path / "out", undisturbed_long, num_kills=20)


@pytest.mark.full
def test_a_run_killed_at_random_moments_ends_in_the_same_bits(
    small_yaml: Path, tmp_path: Path, undisturbed_long: Path
) -> None:
    kill_at_random(small_yaml, tmp_path / "out", undisturbed_long, num_kills=3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "free_bytes",
    [
        pytest.param(60_000, marks=pytest.mark.slow),
        30_000,
        pytest.param(12_000, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_ends_a_run_in_one_line_and_loses_nothing(
    free_bytes: int, small_yaml: Path, small_disk: Path, undisturbed_long: Path
) -> None:
    """The free bytes run out at three points: in a record, or in a checkpoint."""
    out = small_disk / "out"
    process = start_run(small_yaml, out, "--executor", "serial")
    wait_for_round(process, 0)
    filler = small_disk / "filler"
    fill(filler, small_disk, free_bytes)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    (folder,) = out.iterdir()
    assert errors.splitlines() == [
        f"error: no space left on the disk of {folder}; free some, then give the same command with "
        "--resume"
    ]
    assert not list(folder.rglob(".*.tmp")), "half-written files"
    assert read_run(folder) is not None
    filler.unlink()
    assert run_to_end(small_yaml, out, "--executor", "serial", "--resume") == folder
    assert_equal_runs(undisturbed_long, folder)


def fill(path: Path, disk: Path, free_bytes: int) -> None:
    """Write to `path` until `free_bytes` of the disk are left."""
    with path.open("wb") as file:
        while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > free_bytes:
            try:
                file.write(np.zeros(4096, np.uint8).tobytes())
                file.flush()
            except OSError:
                return
