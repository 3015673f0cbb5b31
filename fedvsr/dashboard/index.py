"""The runs of a results folder, a line each. A run's tables are read only when they change."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from threading import Lock
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fedvsr import journal
from fedvsr.dashboard.values import finite, shortened
from fedvsr.errors import UserError
from fedvsr.means import headline
from fedvsr.records import last_evaluations, read_runs
from fedvsr.runs.pace import STARTING_S, patience_s, silence_s
from fedvsr.runs.run import run_status

Json = dict[str, Any]

Signature = tuple[tuple[str, int, int], ...]
"""Name, time of change in ns and size of files: equal signatures mean equal contents."""

_TABLES = ("runs.parquet", "rounds.parquet", "evaluations.parquet", journal.NAME)
# A folder with this file is a sweep's: `fedvsr.tuning.table`, which may not be imported here.
_SWEEP_FILE = "sweep.yaml"
# In a run's folder, these hold no other run.
_OWN = frozenset({"checkpoints", "clients", "frames", "report"})


@dataclass(frozen=True)
class _Known:
    """What was read of a run, and of which state of its files."""

    signature: Signature | None
    """None if it is still to be read."""
    line: Json | None
    """None for a folder with the tables of several runs."""


class Index:
    """The runs at or below a folder.

    Args:
        root: the folder.
        only: a run's folder, if it alone is to be shown.
        budget_s: seconds for which a call reads tables.
    """

    def __init__(self, root: Path, only: Path | None = None, budget_s: float = 1.0) -> None:
        self.root, self.only, self._budget_s = root, only, budget_s
        self._known = dict[str, _Known]()
        self._lock = Lock()

    def lines(self) -> list[Json]:
        """A dictionary of JSON values per run, the newest first; a damaged run has its `error`.

        What is new is read for `budget_s`: in a first call, later runs have the status `reading`.
        """
        with self._lock:
            end = time.monotonic() + self._budget_s
            before, self._known = self._known, {}
            # Those that changed last first.
            for run_id, folder, found in sorted(self._folders(), key=_age, reverse=True):
                known = before.get(run_id)
                if known is None or known.signature != found:
                    if time.monotonic() < end:
                        known = _Known(found, _line(run_id, folder))
                    elif known is None:
                        # Listed now, and read by a later call.
                        known = _Known(None, {**_name(run_id, folder), "status": "reading"})
                self._known[run_id] = known
            lines = [known.line for known in self._known.values() if known.line]
        lines = [{**line, "status": self._status(line)} for line in lines]
        shown = [line for line in lines if line["status"] != ""]
        shown.sort(key=lambda line: (line["started_at"], line["id"]), reverse=True)
        return shown

    def folder(self, run_id: str) -> Path | None:
        """The folder of a run that was found, by its id; None for any other text.

        Ids are compared with those of the runs found, and never become part of a path.
        """
        for _ in range(2):
            with self._lock:
                known = self._known.get(run_id)
            if known:
                return self._path(run_id)
            # It may be new.
            self.lines()
        return None

    def _path(self, run_id: str) -> Path:
        return self.only if self.only is not None else self.root / run_id

    def _status(self, line: Json) -> str:
        """A run's status now: a run may die without any change of its files. Empty if no run."""
        if line["status"] in ("running", "starting"):
            return live_status(self._path(line["id"]), line["status"], line["slowest_s"])
        return str(line["status"])

    def _folders(self) -> Iterator[tuple[str, Path, Signature]]:
        """The folders of runs, each with its id and the state of its files."""
        if self.only is not None:
            yield self.only.name, self.only, signature(self.only, _TABLES)
            return
        waiting = [self.root]
        while waiting:
            folder = waiting.pop()
            files, folders = _entries(folder)
            is_run = "config.yaml" in files
            waiting += [folder / name for name in folders if not (is_run and name in _OWN)]
            # A folder of results may hold collected tables, which are no run's.
            if folder != self.root and (is_run or "runs.parquet" in files):
                run_id = folder.relative_to(self.root).as_posix()
                yield run_id, folder, _signature(files, _TABLES)


def live_status(folder: Path, status: str, slowest_s: float | None) -> str:
    """Whether a run that calls itself running still is, as `fedvsr watch` sees it.

    Args:
        folder: the run's.
        status: `running`, or `starting` if it has no tables yet.
        slowest_s: seconds of its slowest round; None before the first.

    Returns:
        The status given, `stopped`, or "" for a folder in which no run has begun.
    """
    try:
        silent_s = silence_s(folder)
        if status == "starting":
            return "starting" if silent_s < STARTING_S else ""
        if silent_s > patience_s([] if slowest_s is None else [slowest_s]):
            return run_status(folder)
    except (UserError, OSError):
        # A file is being replaced, or is damaged, which is shown as such.
        return status
    return status


def signature(folder: Path, names: tuple[str, ...]) -> Signature:
    """The state of the files of a folder that have these names."""
    return _signature(_entries(folder)[0], names)


def _signature(files: dict[str, os.DirEntry[str]], names: tuple[str, ...]) -> Signature:
    found = list[tuple[str, int, int]]()
    for name in names:
        # A file may be gone since the folder was read.
        with suppress(OSError, KeyError):
            stat = files[name].stat()
            found.append((name, stat.st_mtime_ns, stat.st_size))
    return tuple(found)


def _entries(folder: Path) -> tuple[dict[str, os.DirEntry[str]], list[str]]:
    """The files of a folder by name, and the names of its folders; both empty if it is gone."""
    files, folders = dict[str, os.DirEntry[str]](), list[str]()
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                folders.append(entry.name)
            else:
                files[entry.name] = entry
    return files, folders


def _line(run_id: str, folder: Path) -> Json | None:
    line = _name(run_id, folder)
    try:
        runs = read_runs(folder)
        if not runs:
            return {**line, "status": "starting", "slowest_s": None}
        return {**line, **_of_row(folder, runs[0])} if len(runs) == 1 else None
    except Exception as error:
        # Whatever a run's tables hold, the other runs are shown.
        return {**line, "status": "damaged", "error": shortened(error, folder)}


def _name(run_id: str, folder: Path) -> Json:
    """What is known of a run without its tables."""
    line: Json = {"id": run_id, "name": folder.name, "sweep": _sweep_of(run_id, folder)}
    # Until its own row is read.
    line["started_at"] = _changed_at(folder)
    return line


def _age(found: tuple[str, Path, Signature]) -> tuple[int, str]:
    """When a run's files last changed, and its id."""
    run_id, _, files = found
    return max((changed_ns for _, changed_ns, _ in files), default=0), run_id


def _sweep_of(run_id: str, folder: Path) -> str | None:
    """The sweep that a run is a trial of, by its folder's id; None for other runs."""
    parts = run_id.split("/")
    for depth in range(1, len(parts)):
        if (folder.parents[depth - 1] / _SWEEP_FILE).is_file():
            return "/".join(parts[:-depth])
    return None


def _changed_at(folder: Path) -> str:
    """When a folder last changed, as JSON has times; the earliest one if it is gone."""
    seconds = 0.0
    with suppress(OSError):
        seconds = folder.stat().st_mtime
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat()


def _of_row(folder: Path, row: Json) -> Json:
    line = {name: row[name] for name in ("status", "model", "algorithm", "seed", "num_rounds")}
    if row["started_at"]:
        line["started_at"] = row["started_at"].isoformat()
    if row["status"] == "finished" and row["psnr_db"] is not None:
        # The run's own row was written after all others.
        line |= {"last_round": row["num_rounds"], "slowest_s": None}
        return line | scores_of(row)
    rounds, evaluations = last_evaluations(folder)
    return line | {
        "last_round": pc.max(rounds["round_idx"]).as_py() or 0,
        "slowest_s": _slowest_s(rounds),
        **last_scores(rounds, evaluations),
    }


def _slowest_s(rounds: pa.Table) -> float | None:
    """Seconds of the slowest round with the pause before it; None if none has trained."""
    rows = rounds.select(["round_idx", "gap_s", "train_s"]).to_pylist()
    took_s = [(r["gap_s"] or 0.0) + (r["train_s"] or 0.0) for r in rows if r["round_idx"]]
    return max(took_s, default=None)


def last_scores(rounds: pa.Table, evaluations: pa.Table) -> Json:
    """The first test set, its RGB PSNR in the last scored round, and the gain over bicubic."""
    scored = rounds.filter(pc.is_finite(rounds["psnr_db"]))
    last = pc.max(scored["round_idx"])
    if not last.is_valid:
        return scores_of({})
    return scores_of(headline(evaluations.filter(pc.equal(evaluations["round_idx"], last))))


def scores_of(row: Json) -> Json:
    """The scores of a line, of a run's row or of means."""
    psnr_db, bicubic_db = (finite(row.get(name)) for name in ("psnr_db", "bicubic_psnr_db"))
    known = psnr_db is not None and bicubic_db is not None
    return {
        "test_set": row.get("test_set"),
        "psnr_db": psnr_db,
        "gain_db": psnr_db - bicubic_db if known else None,
    }
