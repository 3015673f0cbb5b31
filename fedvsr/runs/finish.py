"""Tells the user's command `on_finish` how a run has ended."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager

from fedvsr import notice
from fedvsr.records import read_run
from fedvsr.runs.run import Run, run_status


def noticed(run: Run) -> AbstractContextManager[None]:
    """Execute a run inside; however that ends, `on_finish` is called once.

    A run that is refused before it begins has no row, and calls nobody.
    """
    return notice.noticed(run.config.on_finish, lambda error: _facts(run, error))


def _facts(run: Run, error: BaseException | None) -> Mapping[str, str] | None:
    row, status = read_run(run.folder), run_status(run.folder)
    if row is None:
        return None
    # A run whose cluster is gone could not write how it ended.
    status = "stopped" if status == "running" else status
    reason = row["error"] or (str(error) if error is not None else "")
    return {
        "kind": "run",
        "run_id": run.run_id,
        "status": status,
        "folder": str(run.folder),
        "psnr_db": psnr_text(row["psnr_db"]),
        "error": str(reason) if status in ("failed", "stopped") else "",
    }


def psnr_text(psnr_db: float | None) -> str:
    """A number of decibels as a fact; empty for none."""
    return "" if psnr_db is None or math.isnan(psnr_db) else f"{psnr_db:.2f}"
