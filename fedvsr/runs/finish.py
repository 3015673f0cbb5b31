"""Tells the user's command `on_finish` how a run has ended."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager

from fedvsr.errors import UserError
from fedvsr.notice import notify, warn_if_missing
from fedvsr.records import read_run
from fedvsr.runs.run import Run, run_status


@contextmanager
def noticed(run: Run) -> Iterator[None]:
    """Execute a run inside; however that ends, `on_finish` is called once.

    A run that is refused before it begins has no row, and calls nobody.
    """
    command = run.config.on_finish
    if not command:
        yield
        return
    warn_if_missing(command)
    try:
        yield
    except BaseException as error:
        # Whatever ends the run; it is raised again.
        _notify(run, str(error))
        raise
    _notify(run, "")


def _notify(run: Run, error: str) -> None:
    try:
        row, status = read_run(run.folder), run_status(run.folder)
    except (UserError, OSError) as reason:
        logging.getLogger("fedvsr").warning("on_finish: not called: %s", reason)
        return
    if row is None:
        return
    # A run whose cluster is gone could not write how it ended.
    status = "stopped" if status == "running" else status
    psnr_db = row["psnr_db"]
    facts = {
        "kind": "run",
        "run_id": run.run_id,
        "status": status,
        "folder": str(run.folder),
        "psnr_db": psnr_text(psnr_db),
        "error": str(row["error"] or error) if status in ("failed", "stopped") else "",
    }
    notify(run.config.on_finish, facts)


def psnr_text(psnr_db: float | None) -> str:
    """A number of decibels as a fact; empty for none."""
    return "" if psnr_db is None or math.isnan(psnr_db) else f"{psnr_db:.2f}"
