"""Two runs compared by everything that the seed decides."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from fedvsr.records import SCHEMAS, load_results

# What may differ between equal runs: wall seconds, restarts, when and by whom it was run.
VOLATILE = {"run_id", "started_at", "updated_at", "executor", "attempts", "config", "name"}


def facts(folder: Path) -> dict[str, pd.DataFrame]:
    """A run's tables without what may differ."""
    tables = load_results(folder)
    return {
        name: tables[name].drop(
            columns=[c for c in tables[name] if c in VOLATILE or c.endswith("_s")]
        )
        for name in SCHEMAS
    }


def assert_equal_runs(one: Path, other: Path) -> None:
    expected, found = facts(one), facts(other)
    for name in SCHEMAS:
        pd.testing.assert_frame_equal(found[name], expected[name], check_exact=True, obj=name)
    weights = [(folder / "model.safetensors").read_bytes() for folder in (one, other)]
    assert weights[0] == weights[1], "final weights differ"
