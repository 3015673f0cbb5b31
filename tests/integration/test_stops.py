"""Jobs that are stopped, killed at any moment, or run out of disk."""

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
from tests.integration.equality import assert_equal_runs
from tests.integration.test_resume import command, run, wait_for_round_0

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def undisturbed(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(small_yaml, tmp_path_factory.mktemp("whole"), "--executor", "serial")


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_run_saves_its_last_round_and_leaves_nothing_behind(
    how: signal.Signals, small_yaml: Path, tmp_path: Path
) -> None:
    """Also rounds after the last checkpoint that was due."""
    extra = ["--set", "checkpoint.every_rounds=100", "--set", "local.steps=300"]
    process = subprocess.Popen(
        command(small_yaml, tmp_path, *extra),
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    wait_for_round_0(process)
    assert process.stdout is not None
    assert any(line.startswith("round 1/5") for line in process.stdout)
    started = {child.pid for child in psutil.Process(process.pid).children(recursive=True)}
    assert started
    process.send_signal(how)
    printed = process.stdout.read()
    assert process.wait(timeout=60) == 130, printed
    assert "stopped; go on with: fedvsr run" in printed
    (folder,) = tmp_path.iterdir()
    assert run_status(folder) == "interrupted"
    done = load_results(folder).rounds["round_idx"].max()
    (saved,) = (folder / "checkpoints").glob("round-*")
    assert saved.name == f"round-{done:06d}.safetensors"
    deadline = time.monotonic() + 20
    while started & set(psutil.pids()) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not started & set(psutil.pids()), "processes outlived the command"


def kill_at_random(small_yaml: Path, folder: Path, undisturbed: Path, times: int) -> None:
    """Kill runs until so many kills have hit; every run ends in the bits of an undisturbed one."""
    rng, left = random.Random(0), times
    while left:
        out = folder / str(left)
        while left and not is_finished(out):
            process = subprocess.Popen(
                command(small_yaml, out, *resume_if_begun(out)),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            # From before the first file is there to the middle of a later round.
            time.sleep(rng.uniform(2, 10))
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
                left -= 1
            process.wait()
            for path in out.glob("*/.lock"):
                wait_until_free(path.parent)
        if not is_finished(out):
            command_line = command(small_yaml, out, *resume_if_begun(out))
            subprocess.run(command_line, check=True, stdout=subprocess.DEVNULL, timeout=200)
        (run_folder,) = (path.parent for path in out.glob("*/config.yaml"))
        assert_equal_runs(undisturbed, run_folder)
        # A kill may cut off the line that is being written, and spoils none beside it.
        lines = (run_folder / "events.jsonl").read_text().splitlines()
        whole = [line for line in lines if is_json(line)]
        assert len(lines) - len(whole) <= times
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


def wait_until_free(folder: Path) -> None:
    """Ray's processes follow their killed head within seconds, the one that writes the run too."""
    deadline = time.monotonic() + 60
    while run_status(folder) == "running" and time.monotonic() < deadline:
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_twenty_random_moments(
    small_yaml: Path, tmp_path: Path, undisturbed: Path
) -> None:
    kill_at_random(small_yaml, tmp_path / "out", undisturbed, times=20)


def test_killed_at_random_moments(small_yaml: Path, tmp_path: Path, undisturbed: Path) -> None:
    kill_at_random(small_yaml, tmp_path / "out", undisturbed, times=3)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system that is soon full."""
    folder = tmp_path / "disk"
    folder.mkdir()
    made = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True
    )
    if made.returncode:
        pytest.skip(f"no file system can be mounted here: {made.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize(
    "room",
    [
        pytest.param(60_000, marks=pytest.mark.slow),
        30_000,
        pytest.param(12_000, marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_ends_a_run_in_one_line_and_loses_nothing(
    room: int, small_yaml: Path, small_disk: Path, undisturbed: Path
) -> None:
    """At three points: what is left of the disk runs out in a record or in a checkpoint."""
    out = small_disk / "out"
    process = subprocess.Popen(
        command(small_yaml, out, "--executor", "serial"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_round_0(process)
    filler = small_disk / "filler"
    fill(filler, small_disk, room)
    _, errors = process.communicate(timeout=100)
    assert process.returncode == 2, errors
    (folder,) = out.iterdir()
    assert errors.splitlines() == [
        f"error: no room left on the disk of {folder}; make some, and go on with --resume"
    ]
    assert not list(folder.rglob(".*.tmp")), "half-written files"
    assert read_run(folder) is not None
    filler.unlink()
    assert run(small_yaml, out, "--executor", "serial", "--resume") == folder
    assert_equal_runs(undisturbed, folder)


def fill(path: Path, disk: Path, room: int) -> None:
    with path.open("wb") as file:
        while os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize > room:
            try:
                file.write(np.zeros(4096, np.uint8).tobytes())
                file.flush()
            except OSError:
                return
