"""Tells the user's command `on_finish` how a sweep has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedvsr.errors import UserError
from fedvsr.notice import notify, warn_if_missing
from fedvsr.runs.finish import psnr_text
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.progress import best_of, current_rows

_UNFINISHED = ("running", "interrupted", "pending")


@contextmanager
def noticed(sweep: SweepConfig, command: str, folder: Path) -> Iterator[None]:
    """Execute a sweep inside; however that ends, its base's `on_finish` is called once.

    Its trials do not call it.
    """
    if not command:
        yield
        return
    warn_if_missing(command)
    try:
        yield
    except BaseException as error:
        # Whatever ends the sweep; it is raised again.
        by_user = isinstance(error, KeyboardInterrupt)
        _notify(sweep, command, folder, "interrupted" if by_user else "failed", str(error))
        raise
    _notify(sweep, command, folder)


def _notify(
    sweep: SweepConfig, command: str, folder: Path, status: str = "", error: str = ""
) -> None:
    if not (folder / "trials.parquet").exists():
        # It has not begun.
        return
    try:
        rows = current_rows(folder)
    except (UserError, OSError) as reason:
        logging.getLogger("fedvsr").warning("on_finish: not called: %s", reason)
        return
    states = {row["status"] for row in rows}
    if not status:
        status = "interrupted" if states & {*_UNFINISHED} else "finished"
        status = "failed" if states == {"failed"} else status
    best = best_of(rows, sweep)
    facts = {
        "kind": "sweep",
        "run_id": sweep.name,
        "status": status,
        "folder": str(folder.resolve()),
        "psnr_db": psnr_text(best[0].get("psnr_db") if best else None),
        "error": "" if status == "interrupted" else error,
    }
    notify(command, facts)
