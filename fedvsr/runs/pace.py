"""How long a run's rounds take, and for how long it has written nothing."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from fedvsr import journal

# A run is considered dead if its lock is free and its tables have not changed for this long. Locks
# do not work over every shared file system, so a free lock alone proves nothing.
_SILENT_ROUNDS, _SILENT_S = 5, 60.0
STARTING_S = 600.0
"""The same before the first round, when videos are cut and client processes start."""


def patience_s(walls_s: Sequence[float]) -> float:
    """Seconds without a change after which a run may be dead.

    Args:
        walls_s: seconds of its rounds so far, from round 1.
    """
    return max(_SILENT_S, _SILENT_ROUNDS * max(walls_s)) if walls_s else STARTING_S


def silence_s(folder: Path) -> float:
    """Seconds since a table or the folder itself last changed."""
    paths = [folder, folder / journal.NAME, *folder.glob("*.parquet")]
    times = list[float]()
    for path in paths:
        # Files are replaced and removed meanwhile.
        with suppress(FileNotFoundError):
            times.append(path.stat().st_mtime)
    return time.time() - max(times, default=0.0)


def round_s(gap_s: float | None, train_s: float, first_step_s: float) -> float:
    """Seconds of a round: from the previous round's last update to its own last update.

    `fedvsr run` and `fedvsr watch` show it, from what is recorded.

    Args:
        gap_s: column `gap_s` of `rounds`; None for the first round of a process.
        train_s: column `train_s` of `rounds`.
        first_step_s: lowest `started_s` of the round's clients, which the gap covers too.
    """
    return train_s if gap_s is None else gap_s + train_s - first_step_s
