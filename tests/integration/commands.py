"""`fedvsr run` in a process of its own, to be stopped or killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fedvsr.runs.run import run_status

T = TypeVar("T")
# Enough work in each round that a kill falls inside one. A process for each client would take two
# seconds of a processor to start.
LONG = {"federation.num_rounds": 5, "local.steps": 25, "cluster.isolation": "slot"}
# For a run that the test ends.
ENDLESS = ("--set", "federation.num_rounds=5000")
_SLOW = '''
import time
from typing import Literal

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """FedAvg, a second later."""

    name: Literal["slow"] = "slow"


class Algorithm(FedAvg):
    """Sleeps in each round."""

    source = "here"

    def server_step(self, *arguments):
        time.sleep(1.0)
        return super().server_step(*arguments)
'''


def endless_and_idle(folder: Path) -> dict[str, object]:
    """Settings of a run that outlasts any wait, and hardly takes a processor from other tests.

    Args:
        folder: gets the file of its algorithm.
    """
    path = folder / "slow.py"
    path.write_text(_SLOW)
    return {"algorithm.name": str(path), "federation.num_rounds": 5000}


def run_command(source: Path, out: Path, *extra: str) -> list[str]:
    """The command line of a run of `source` with the settings `LONG`."""
    settings = [word for key, value in LONG.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "fedvsr", "run", str(source), "--out", str(out)]
    return [*command, *settings, *extra]


def run_to_end(source: Path, out: Path, *extra: str) -> Path:
    """Run or resume, and return the run's folder."""
    done = subprocess.run(
        run_command(source, out, *extra), capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (folder,) = out.iterdir()
    return folder


def start_run(source: Path, out: Path, *extra: str) -> subprocess.Popen[str]:
    """Start or resume a run whose output the test reads."""
    return subprocess.Popen(
        run_command(source, out, *extra),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )


def heed_ctrl_c() -> None:
    """Undo what a shell does to tests in the background: their children would ignore SIGINT."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_round(process: subprocess.Popen[str], round_idx: int) -> None:
    """Read the run's output up to the line of a round."""
    assert process.stdout is not None
    assert any(line.startswith(f"round {round_idx}/") for line in process.stdout)


def wait_while_it_runs(
    process: subprocess.Popen[Any], find: Callable[[], T | None], limit_s: float = 200.0
) -> T:
    """Wait until `find` gives something; a command that ends before fails the test.

    Reading a command's files all the time would take a processor from it.
    """
    deadline = time.monotonic() + limit_s
    while not (found := find()):
        assert process.poll() is None, "the command ended before"
        assert time.monotonic() < deadline
        time.sleep(0.2)
    return found


def wait_until_stopped(folder: Path) -> None:
    """Wait for the process that writes a run to end.

    On Ray it follows its killed command within seconds.
    """
    wait_until(lambda: run_status(folder) != "running")


def wait_until(holds: Callable[[], object], limit_s: float = 60.0) -> None:
    deadline = time.monotonic() + limit_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)
