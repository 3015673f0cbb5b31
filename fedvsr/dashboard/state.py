"""All that the page of one run shows, as JSON values."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from fedvsr import journal
from fedvsr.dashboard import clients, curves, eventlog, pictures
from fedvsr.dashboard.index import Signature, last_scores, live_status, scores_of, signature
from fedvsr.dashboard.values import finite, shortened
from fedvsr.data.owners import Owners
from fedvsr.errors import UserError
from fedvsr.records import checked_table, read_runs
from fedvsr.schemas import SCHEMAS
from fedvsr.stored import empty

Json = dict[str, Any]
_Found = TypeVar("_Found")

# A part of a table changes only together with the journal.
_TABLES = (*(f"{name}.parquet" for name in SCHEMAS), journal.NAME)
_FILES = (*_TABLES, eventlog.NAME, "config.yaml")
# Columns that the page needs of the tables that may have millions of rows; others are read whole.
_COLUMNS = {
    "clients": (
        *("round_idx", "client_id", "loss", "attempts", "rejected", "upload_failed"),
        *("node", "slot", "started_s", "train_s"),
    ),
    "partition": ("client_id", "num_frames"),
}
# Tables of which rows of earlier rounds stay as they are, unless a process takes the run over.
_BY_ROUND = ("rounds", "clients", "evaluations")
# `rounds` first: a table that is read after it has all rows of the rounds before its last one.
_ORDER = (*_BY_ROUND, "faults", "partition")
# Pieces that a table may be in before it is copied to one.
_MOST_PIECES = 64
_MOST_FAULTS = 100
_MOST_CONFIG_BYTES = 200_000
# Rounds whose seconds say how long the rest will take.
_RECENT = 5


class RunReader:
    """Reads a run's state, again only if one of its files has changed.

    Args:
        run_id: the run's id in the index.
        folder: its folder.
    """

    def __init__(self, run_id: str, folder: Path) -> None:
        self._run_id, self._folder = run_id, folder
        self._lock = Lock()
        self._signature: Signature | None = None
        self._state: Json = {}
        self._partition: tuple[Signature | None, pa.Table] = None, empty(SCHEMAS["partition"])
        self._read_tables: tuple[Signature, dict[str, pa.Table], list[str]] | None = None
        # What is known of these tables, up to which round it stays, and who wrote it.
        self._known: tuple[object, int, dict[str, pa.Table]] = None, 0, {}
        self._frames_lock = Lock()
        self._frames: tuple[Signature, Json] = ((), {"frames": [], "errors": []})

    def state(self) -> Json:
        """The state now. What cannot be read is a line in `errors`, and the rest is shown."""
        with self._lock:
            found = signature(self._folder, _FILES)
            if found != self._signature:
                # Read after its signature: what changes in between is read again next time.
                self._state, self._signature = self._whole(), found
            status = self._state["status"]
            if status in ("running", "starting"):
                slowest_s = self._state["slowest_s"]
                status = live_status(self._folder, status, slowest_s) or "stopped"
            shown = {**self._state, "status": status}
            if status != "running":
                shown["now"] = None
            return shown

    def frames(self) -> Json:
        """The frames that the run has saved (`frames`), and what cannot be read (`errors`).

        They are not part of the state, because their pictures are read for the PSNR.
        """
        with self._frames_lock:
            found = self._pictures()
            if found != self._frames[0]:
                try:
                    shown: Json = {"frames": pictures.scenes(self._folder, self._run_id)}
                except (OSError, ValueError) as error:
                    # Pictures are written one after another, and may be damaged.
                    shown = {"frames": [], "errors": [shortened(error, self._folder)]}
                self._frames = found, {"errors": [], **shown}
            return self._frames[1]

    def _whole(self) -> Json:
        try:
            return self._read()
        except Exception as error:
            # Tables may hold what no version writes. The page names the error and shows other runs.
            message = f"its tables cannot be shown: {shortened(error, self._folder)}"
            return {"id": self._run_id, "name": self._folder.name, "status": "damaged"} | {
                "walls_s": [],
                "errors": [message],
            }

    def _read(self) -> Json:
        errors = list[str]()

        def attempt(read: Callable[[], _Found], otherwise: _Found) -> _Found:
            try:
                return read()
            except (UserError, OSError, ValueError, pa.ArrowException) as error:
                errors.append(shortened(error, self._folder))
                return otherwise

        rows = attempt(partial(read_runs, self._folder), list[Json]())
        row = rows[0] if rows else {}
        events = attempt(partial(eventlog.last_events, self._folder), list[Json]())
        tables, unreadable = self._tables(events)
        errors += unreadable
        rounds = _rounds(tables["rounds"])
        walls_s = curves.walls(rounds, tables["clients"])
        config = attempt(partial(_config, row), Json())
        last_round = rounds[-1]["round_idx"] if rounds else 0
        status = row.get("status") or ("damaged" if errors else "starting")
        drawing = config, tables["partition"], row.get("num_clients") or 0
        now = None
        if row and last_round < row["num_rounds"]:
            now = clients.under_way(last_round + 1, *drawing, events)
        scored = last_scores(tables["rounds"], tables["evaluations"])
        return {
            "id": self._run_id,
            "name": self._folder.name,
            "status": status,
            **_facts(row),
            **(scored if scored["psnr_db"] is not None else scores_of(row)),
            "last_round": last_round,
            "walls_s": list(walls_s.values())[-_RECENT:],
            "slowest_s": max(walls_s.values(), default=None),
            "charts": curves.charts(rounds, walls_s, tables["evaluations"]),
            "now": now,
            "last": clients.slots(rounds, tables["clients"], *drawing),
            "clients": clients.overview(
                tables["clients"], tables["faults"], Owners.recorded(config.get("data") or {})
            ),
            "faults": _faults(tables["faults"]),
            # Differs if a picture does; empty without one.
            "frames": _tag(self._pictures()),
            "log": eventlog.log(events),
            "config": attempt(partial(_config_text, self._folder), ""),
            # Last: reading the parts above may have added some.
            "errors": errors,
        }

    def _tables(self, events: Sequence[Json]) -> tuple[dict[str, pa.Table], list[str]]:
        """The run's tables by name, and why some of them cannot be read."""
        found = signature(self._folder, _TABLES)
        if self._read_tables is None or self._read_tables[0] != found:
            partition = tuple(file for file in found if file[0] == "partition.parquet")
            started = [event for event in events if event.get("event") == "RunStarted"]
            writer = partition, started[-1:]
            known, final = self._known[2], self._known[1]
            if writer != self._known[0]:
                # Rounds may be repeated.
                known, final = {}, 0
            tables, errors = dict[str, pa.Table](), list[str]()
            for name in _ORDER:
                if name == "partition" and self._partition[0] == partition:
                    # It may have a million rows, and changes only when a process takes over.
                    tables[name] = self._partition[1]
                    continue
                try:
                    tables[name] = self._table(name, known.get(name), final)
                except (UserError, OSError, ValueError, pa.ArrowException) as error:
                    errors.append(shortened(error, self._folder))
                    tables[name] = empty(SCHEMAS[name])
                else:
                    if name == "partition":
                        self._partition = partition, tables[name]
            self._read_tables = found, tables, sorted(errors)
            last = max(tables["rounds"]["round_idx"].to_pylist()[-1:], default=0)
            self._known = (None, 0, {}) if errors else (writer, last, tables)
        return self._read_tables[1:]

    def _table(self, name: str, known: pa.Table | None, final: int) -> pa.Table:
        """A table: what is known of it before round `final`, and what is read of later rounds."""
        columns = _COLUMNS.get(name)
        if known is None or name not in _BY_ROUND or not final:
            return checked_table(self._folder, name, columns)
        new = checked_table(self._folder, name, columns, since=final)
        # Rows are in the order of rounds.
        end = int(np.searchsorted(known["round_idx"].to_numpy(), final))
        table = pa.concat_tables([known.slice(0, end), new])
        is_scattered = table["round_idx"].num_chunks > _MOST_PIECES
        return table.combine_chunks() if is_scattered else table

    def _pictures(self) -> Signature:
        folder = self._folder / "frames"
        return signature(folder, tuple(sorted(path.name for path in folder.glob("*.png"))))


def _tag(pictures: Signature) -> str:
    return hashlib.sha256(repr(pictures).encode()).hexdigest()[:16] if pictures else ""


def _rounds(table: pa.Table) -> list[Json]:
    """The rows of `rounds` that the page needs, in their order."""
    names = ["round_idx", "loss", "vsr_loss", "gap_s", "train_s", "evaluate_s"]
    names += ["num_sampled", "num_online", "num_failed", "num_rejected", "num_upload_failures"]
    rows: list[Json] = table.select(names).to_pylist()
    return sorted(rows, key=lambda row: row["round_idx"])


def _facts(row: Json) -> Json:
    """Settings and counts of a run's own row; all None before it is written."""
    names = ["model", "algorithm", "seed", "executor", "device", "error", "num_params"]
    names += ["num_rounds", "num_clients", "num_train_clips", "num_test_clips"]
    facts = {name: finite(row.get(name)) for name in names}
    for name in ("started_at", "updated_at"):
        facts[name] = row[name].isoformat() if row.get(name) else None
    return facts


def _faults(table: pa.Table) -> Json:
    """The number of faults, and the newest ones first."""
    names = ["round_idx", "client_id", "attempt", "kind", "final", "node", "message", "lost_s"]
    rows = table.slice(max(0, len(table) - _MOST_FAULTS)).select(names).to_pylist()
    newest = [{k: finite(v) for k, v in row.items()} for row in reversed(rows)]
    return {"num": len(table), "rows": newest}


def _config(row: Json) -> Json:
    config = json.loads(row.get("config") or "{}")
    return config if isinstance(config, dict) else {}


def _config_text(folder: Path) -> str:
    """The text of `config.yaml`; empty if the run has none."""
    try:
        with (folder / "config.yaml").open("rb") as file:
            return file.read(_MOST_CONFIG_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ""
