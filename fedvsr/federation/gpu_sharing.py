"""How many clients share a GPU, from what one takes of it (`cluster.clients_per_gpu: auto`).

What a client takes is measured once and kept in a file, by the settings that decide it and by card.
"""

from __future__ import annotations

import hashlib
import json
import math
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.metadata import version
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch
from rich import filesize

from fedvsr.checked_text import read_json, write_json
from fedvsr.environment import git_commit
from fedvsr.errors import DamagedError
from fedvsr.federation.executors import Clients
from fedvsr.section import NamedSection
from fedvsr.training.footprint import Footprint

BUSY = 0.9
"""Share of the time in which a GPU should compute: another client then adds little."""
USABLE = 0.9
"""Share of a GPU's memory that clients may fill; the evaluator's frames need some, too."""
MOST = 64
FILE = "gpu-footprints.json"
# Footprints kept; each takes 200 bytes.
_KEPT = 500
# Settings of `local` that neither change the memory of a step nor its kernels.
_NO_MATTER = {
    *("epochs", "steps", "interval", "ends", "augment", "random_reverse", "lr", "betas"),
    *("weight_decay", "schedule", "min_lr", "slow_factor", "num_workers"),
}


@dataclass(frozen=True)
class Card:
    """A kind of GPU."""

    name: str
    total_bytes: int


@dataclass(frozen=True)
class Room:
    """What besides the GPU bounds the clients that share it."""

    clients: int
    """Clients that train at once, for each GPU of the run."""
    processors: int
    """Clients for whose threads its node has processors, for each GPU."""
    max_live: int
    """Processes that may live on a GPU, those included that wait for their next task."""


def choose(taken: Footprint, room: Room) -> tuple[int, str]:
    """How many clients share a GPU, and why not more.

    The fewest that keep it busy, if memory, processors and clients suffice.

    Args:
        taken: what a client takes.
        room: the other bounds.
    """
    fitting = takewhile(lambda n: _memory(n, taken, room) <= USABLE * taken.total_bytes, _numbers())
    bounds = {
        "which keeps it busy": math.ceil(round(BUSY / max(taken.busy, BUSY / MOST), 6)),
        "more do not fit into its memory": max(fitting, default=1),
        "no more clients train at once": room.clients,
        "more would lack processors": room.processors,
    }
    reason = min(bounds, key=bounds.__getitem__)
    return max(1, bounds[reason]), reason


def _numbers() -> range:
    return range(1, MOST + 1)


def _memory(count: int, taken: Footprint, room: Room) -> int:
    """Memory of clients that train, and of processes that wait."""
    return count * taken.peak_bytes + max(0, room.max_live - count) * taken.idle_bytes


def describe(taken: Footprint) -> str:
    """A client's share of a GPU, for people."""
    peak, total = (filesize.decimal(n) for n in (taken.peak_bytes, taken.total_bytes))
    return f"a client computes {taken.busy:.0%} of the time and takes {peak} of {total}"


def key_of(clients: Clients, card: Card) -> str:
    """What a footprint depends on, as a digest: settings, versions and card."""
    parts = {
        "model": clients.model.model_dump(mode="json", exclude={"weights", "flow_weights"}),
        "algorithm": _identity(clients.algorithm),
        "local": clients.local.model_dump(mode="json", exclude=_NO_MATTER),
        "versions": [git_commit() or version("fedvsr"), torch.__version__],
        "card": asdict(card),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _identity(section: NamedSection) -> list[str]:
    """An algorithm's name and, of a plug-in, its digest: its numbers change no shape."""
    return [section.name, section.plugin.sha256 if section.plugin else ""]


def recall(file: Path, key: str) -> Footprint | None:
    """The footprint that a file keeps for a key; a damaged file keeps none."""
    found = _read(file).get(key)
    return Footprint(**found) if found else None


def keep(file: Path, key: str, taken: Footprint) -> None:
    """Add a footprint to a file, which is made if it is missing or damaged.

    Raises:
        OSError: it cannot be written.
    """
    table = _read(file)
    table.pop(key, None)
    kept = dict([*table.items(), (key, asdict(taken))][-_KEPT:])
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, {"footprints": kept})


def _read(file: Path) -> dict[str, dict[str, Any]]:
    # Without it, the next run measures again.
    with suppress(DamagedError, OSError):
        table: dict[str, dict[str, Any]] = read_json(file).get("footprints", {})
        return table
    return {}
