"""Two runs compared by everything that the seed decides."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import pandas as pd

from fedvsr.records import load_results

# Columns that may differ between equal runs; so may those of seconds, energy and use of a GPU.
VOLATILE = {
    *("run_id", "started_at", "updated_at", "executor", "attempts", "config", "name"),
    *("node", "slot"),
}


def facts(folder: Path) -> dict[str, pd.DataFrame]:
    """A run's tables without the columns that may differ."""
    tables = vars(load_results(folder))
    return {
        name: table.drop(
            columns=[
                c
                for c in table
                if c in VOLATILE or c.endswith(("_s", "_j")) or c.startswith("gpu_")
            ]
        )
        for name, table in tables.items()
        # Faults on the way are not part of the outcome.
        if name != "faults"
    }


def assert_equal_runs(expected: Path, actual: Path, ignore: Collection[str] = ()) -> None:
    """Compare the tables, without the columns in `ignore`, and the networks of two runs."""
    expected_tables, actual_tables = facts(expected), facts(actual)
    for name in expected_tables:
        left, right = (
            tables[name].drop(columns=[c for c in ignore if c in tables[name]])
            for tables in (actual_tables, expected_tables)
        )
        pd.testing.assert_frame_equal(left, right, check_exact=True, obj=name)
    assert networks(expected) == networks(actual), "final weights differ"


def networks(folder: Path) -> dict[str, bytes]:
    """The bytes of the trained network's file, or of each client's, by path."""
    paths = [*folder.glob("model.safetensors"), *folder.glob("clients/*.safetensors")]
    assert paths
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}
