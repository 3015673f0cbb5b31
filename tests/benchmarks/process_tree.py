"""Runs a command that tells of its rounds, and watches it with all processes that it starts.

The command prints lines of JSON that begin with `@`, one an event: `base` (its driver's `pid` and
private memory before anything is held), `round` (`at`, seconds since 1970), `memory` (all that is
timed is done: what follows may be disturbed by reading every process's memory).
"""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import median
from typing import Any

import psutil

# Ray's default priority starves workers, and spinning threads starve the rest; peers get the same.
FAIR = {
    "RAY_worker_niceness": "0",
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}
# Rounds until all shared pages have been touched.
WARM_UP = 3


@dataclass
class Watched:
    """What a command did."""

    started_at: float
    rounds: list[dict[str, Any]] = field(default_factory=list)
    """The events, each with `cpu_s`, that of all processes so far."""
    facts: dict[str, Any] = field(default_factory=dict)
    driver_base_bytes: int = 0
    driver_peak_bytes: int = 0
    """Above what it had at `base`."""
    pss_bytes: int = 0
    num_processes: int = 0

    @property
    def first_round_s(self) -> float:
        """From the command's start to the end of its first round."""
        return float(self.rounds[0]["at"] - self.started_at)

    @property
    def timed(self) -> list[dict[str, Any]]:
        """The rounds after the warm-up."""
        return self.rounds[WARM_UP:]

    @property
    def round_s(self) -> float:
        """Median wall seconds from one round's end to the next one's."""
        ends = [event["at"] for event in self.rounds[WARM_UP - 1 :]]
        return median(after - before for before, after in pairwise(ends))

    @property
    def cpu_s(self) -> float:
        """Mean CPU seconds of a round, of all processes."""
        first, last = self.rounds[WARM_UP - 1], self.rounds[-1]
        return float(last["cpu_s"] - first["cpu_s"]) / len(self.timed)


def watch(command: Sequence[str], env: Mapping[str, str] | None = None) -> Watched:
    """Run a command to its end.

    Raises:
        RuntimeError: it failed; its last lines are in the message.
    """
    this = Watched(time.time())
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **FAIR, **(env or {})},
    )
    tree, log = _Tree(process.pid), list[str]()
    assert process.stdout
    with tree:
        for line in process.stdout:
            if not line.startswith("@"):
                log.append(line)
                continue
            event = json.loads(line[1:])
            kind = event.pop("event")
            if kind == "base":
                this.driver_base_bytes = event["private_bytes"]
                tree.follow_driver(event["pid"], this.driver_base_bytes)
            elif kind == "memory":
                tree.reads_memory = True
            elif kind == "round" and not tree.reads_memory:
                this.rounds.append({**event, "cpu_s": tree.cpu_s()})
            elif kind != "round":
                this.facts.update(event)
    if process.wait() or not this.rounds:
        raise RuntimeError(f"{' '.join(command)}: exit {process.returncode}\n{''.join(log[-30:])}")
    this.driver_peak_bytes = tree.driver_peak
    this.pss_bytes, this.num_processes = tree.pss_peak, tree.num_peak
    return this


class _Tree:
    """A process and its descendants, alive or not."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._known = {pid: self._root}
        self._cpu_s = dict[int, float]()
        self._driver: psutil.Process | None = None
        self._base = 0
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.reads_memory = False
        self.driver_peak = self.pss_peak = self.num_peak = 0

    def __enter__(self) -> _Tree:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def follow_driver(self, pid: int, base: int) -> None:
        self._driver, self._base = psutil.Process(pid), base

    def cpu_s(self) -> float:
        """So far, of all that were seen."""
        for pid, process in list(self._known.items()):
            try:
                times = process.cpu_times()
                self._cpu_s[pid] = times.user + times.system
            except psutil.Error:
                self._known.pop(pid, None)
        return sum(self._cpu_s.values())

    def _sample(self) -> None:
        last_look = 0.0
        # A model's copy lives for tens of milliseconds.
        while not self._ended.wait(0.004):
            try:
                if self._driver:
                    memory = self._driver.memory_info()
                    # Without files and the object store.
                    private = memory.rss - memory.shared
                    self.driver_peak = max(self.driver_peak, private - self._base)
                if time.monotonic() - last_look > (0.1 if self.reads_memory else 0.5):
                    last_look = time.monotonic()
                    self._look()
            except psutil.Error:
                continue

    def _look(self) -> None:
        for child in self._root.children(recursive=True):
            self._known.setdefault(child.pid, child)
        self.cpu_s()
        self.num_peak = max(self.num_peak, len(self._known))
        if self.reads_memory:
            self.pss_peak = max(self.pss_peak, sum(map(_pss, list(self._known.values()))))


def _pss(process: psutil.Process) -> int:
    try:
        return int(process.memory_full_info().pss)
    except psutil.Error:
        return 0
