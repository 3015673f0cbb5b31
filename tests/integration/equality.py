"""Two runs compared by everything that the seed decides."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from fedvsr.records import load_results

# What may differ between equal runs: wall seconds, restarts, when and by whom it was run.
VOLATILE = {
    *("run_id", "started_at", "updated_at", "executor", "attempts", "config", "name"),
    *("node", "slot"),
}


def facts(folder: Path) -> dict[str, pd.DataFrame]:
    """A run's tables without what may differ."""
    tables = vars(load_results(folder))
    return {
        name: table.drop(columns=[c for c in table if c in VOLATILE or c.endswith("_s")])
        for name, table in tables.items()
        # What went wrong on the way is no part of the outcome.
        if name != "faults"
    }


def assert_equal_runs(one: Path, other: Path, but: Collection[str] = ()) -> None:
    """Compare two runs, but for some columns."""
    expected, found = facts(one), facts(other)
    for name in expected:
        left, right = (
            table[name].drop(columns=[c for c in but if c in table[name]])
            for table in (found, expected)
        )
        pd.testing.assert_frame_equal(left, right, check_exact=True, obj=name)
    assert networks(one) == networks(other), "final weights differ"


def networks(folder: Path) -> dict[str, bytes]:
    """The files of trained networks, by name: one, or one a client."""
    paths = [*folder.glob("model.safetensors"), *folder.glob("clients/*.safetensors")]
    assert paths
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
