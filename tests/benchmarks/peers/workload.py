"""The work that all frameworks do alike: P float32 parameters in 300 tensors, noise, no training.

Imported in environments that hold a framework and PyTorch, and nothing of this project.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

NUM_TENSORS = 300
# After those that are timed, rounds in which memory is read.
MEMORY_ROUNDS = 3


def parse(**more: int) -> argparse.Namespace:
    """The arguments of every command. All draws of the process are seeded alike."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - frameworks draw from it
    torch.manual_seed(0)
    parser = argparse.ArgumentParser()
    defaults = {"params": 1_000_000, "rounds": 20, "clients": 40, "cohort": 4, "slots": 2}
    for name, default in (defaults | more).items():
        parser.add_argument(f"--{name}", type=int, default=default)
    return parser.parse_args()


def sizes(num_params: int) -> list[int]:
    """Values of each tensor: alike, the last one has the rest."""
    each = num_params // NUM_TENSORS
    return [each] * (NUM_TENSORS - 1) + [num_params - each * (NUM_TENSORS - 1)]


def noise(client_id: int) -> float:
    """What a client adds to every parameter."""
    return 1e-6 * (client_id + 1)


class Rounds:
    """Tells of rounds as they end: `num_timed` of them, then those in which memory is read."""

    def __init__(self, num_timed: int) -> None:
        self._num_timed, self._count = num_timed, 0

    @property
    def num_all(self) -> int:
        return self._num_timed + MEMORY_ROUNDS

    def base(self, pid: int, private_bytes: int) -> None:
        """The process that holds the global parameters, before it does."""
        _tell("base", pid=pid, private_bytes=private_bytes)

    def ended(self, **facts: Any) -> None:
        self._count += 1
        _tell("round", at=time.time(), **facts)
        if self._count == self._num_timed:
            _tell("memory")

    def result(self, sha256: str) -> None:
        """The `digest` of the global parameters at the end, by which two runs are compared."""
        _tell("result", sha256=sha256)


def digest(tensors: Iterable[Any]) -> str:
    """SHA-256 of arrays, one after the other."""
    hashed = hashlib.sha256()
    for tensor in tensors:
        hashed.update(np.ascontiguousarray(tensor))
    return hashed.hexdigest()


def private_bytes() -> int:
    """This process's memory that is neither a file's nor shared."""
    pages = [int(count) for count in Path("/proc/self/statm").read_text().split()]
    return (pages[1] - pages[2]) * os.sysconf("SC_PAGE_SIZE")


def _tell(event: str, **facts: Any) -> None:
    print("@" + json.dumps({"event": event, **facts}), flush=True)
