"""Reads rows of older schema versions as the newest one has them.

Until version 5, a row held the scores of one channel: of luma if `channel` of `evaluations`, or the
run's configuration, said so. It named no test set. Since version 6, a row holds the scores of RGB
and of luma, and `test_set`. Version 7 added `degradation`, and
version 8 `num_shared_params`; both are null in older rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from fedvsr.metrics import BICUBIC

# Columns that held luma's scores where `channel` was y.
_OF_LUMA = {
    f"{prefix}{old}": f"{prefix}{new}"
    for prefix in ("", BICUBIC)
    for old, new in (("psnr_db", "psnr_y_db"), ("ssim", "ssim_y"))
}
_TABLES = ("runs", "rounds", "evaluations")
_READ = ("run_id", "clip_id", "channel", *_OF_LUMA)

Rows = Sequence[Mapping[str, object]]


def upgraded_table(name: str, table: pa.Table, folder: Path) -> pa.Table:
    """A table of version 5 or older with the columns of version 6 that are not null."""
    if name not in _TABLES or "psnr_db" not in table.schema.names:
        return table
    narrow = table.select([c for c in _READ if c in table.schema.names])
    rows = upgraded_rows(name, narrow.to_pylist(), folder)
    for column in (*_OF_LUMA, *_OF_LUMA.values(), "test_set"):
        values = pa.array(
            [row.get(column) for row in rows],
            pa.string() if column == "test_set" else pa.float64(),
        )
        if column in table.schema.names:
            table = table.set_column(table.schema.get_field_index(column), column, values)
        else:
            table = table.append_column(column, values)
    return table


def upgraded_rows(name: str, rows: Rows, folder: Path) -> Rows:
    """Rows with luma's scores in columns of their own and, of `evaluations`, with `test_set`.

    Args:
        name: the table, `runs`, `rounds` or `evaluations`.
        rows: rows of any version.
        folder: the folder of their runs, whose configurations tell luma and the test sets.
    """
    if name not in _TABLES or all(
        row.get("test_set") is not None or row.get("psnr_db") is None for row in rows
    ):
        return rows
    configs = _configs(folder)
    if name != "evaluations":
        return [
            _renamed(row) if _scores_luma(configs.get(row.get("run_id"), {})) else row
            for row in rows
        ]
    clips = dict[object, dict[str, None]]()
    for row in rows:
        clips.setdefault(row.get("run_id"), {})[str(row["clip_id"])] = None
    # Loaded only for an older record.
    from fedvsr.data.testsets import recorded_names

    sets = {run_id: recorded_names(configs.get(run_id, {}), own) for run_id, own in clips.items()}
    return [
        {
            **(_renamed(row) if row.get("channel") == "y" else row),
            "test_set": sets[row.get("run_id")][str(row["clip_id"])],
        }
        for row in rows
    ]


def _renamed(row: Mapping[str, object]) -> dict[str, object]:
    return {_OF_LUMA.get(name, name): value for name, value in row.items()}


def _scores_luma(config: Mapping[str, Any]) -> bool:
    return bool(config.get("evaluation", {}).get("luma"))


def _configs(folder: Path) -> dict[object, dict[str, Any]]:
    """The configuration of each run of a folder; none if its table cannot be read."""
    try:
        table = pq.read_table(folder / "runs.parquet", columns=["run_id", "config"])
        rows = table.to_pylist()
        return {row["run_id"]: json.loads(row["config"]) for row in rows if row["config"]}
    except (OSError, ValueError, pa.ArrowException):
        # A damaged table is named by whoever reads it; clips alone name the published sets.
        return {}
