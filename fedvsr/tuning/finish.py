"""Tells the user's command `on_finish` how a sweep has ended."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path

from fedvsr import notice
from fedvsr.runs.finish import psnr_text
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.progress import best_of, current_rows

_UNFINISHED = ("running", "interrupted", "pending")


def noticed(sweep: SweepConfig, command: str, folder: Path) -> AbstractContextManager[None]:
    """Execute a sweep inside; however that ends, its base's `on_finish` is called once.

    Its trials do not call it.
    """
    return notice.noticed(command, lambda error: _facts(sweep, folder, error))


def _facts(
    sweep: SweepConfig, folder: Path, error: BaseException | None
) -> Mapping[str, str] | None:
    if not (folder / "trials.parquet").exists():
        # It has not begun.
        return None
    rows = current_rows(folder)
    states = {row["status"] for row in rows}
    if error is not None:
        status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
    elif states & {*_UNFINISHED}:
        status = "interrupted"
    else:
        status = "failed" if states == {"failed"} else "finished"
    best = best_of(rows, sweep)
    return {
        "kind": "sweep",
        "run_id": sweep.name,
        "status": status,
        "folder": str(folder.resolve()),
        "psnr_db": psnr_text(best[0].get("psnr_db") if best else None),
        "error": "" if status == "interrupted" or error is None else str(error),
    }
