"""Writes a run's tables while it is executed.

Design: docs/design/0012-recording.md, and 0019-scale.md for runs of many rows.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedvsr.checked import write_parquet, write_tables
from fedvsr.growing import PART_ROWS, GrowingFiles
from fedvsr.journal import Entry, Journal
from fedvsr.means import headline
from fedvsr.records import read_table
from fedvsr.schemas import GROWING, SCHEMAS, Row

_COUNTS = (
    *("num_sampled", "num_rejected", "num_failed", "num_upload_failures"),
    *("download_bytes", "upload_bytes"),
)
# Seconds after which the tables are written again, and most of the time that this may take.
_WRITE_S = 10.0
_SHARE = 0.02
# Share of a file's rows that wait in the journal, and in memory, at most.
_WAITING = 0.25


class RunRecords:
    """Records one run. What was added is on disk when the call returns.

    A round's rows go to the journal, and from there to the tables' files: when `write_s` have
    passed, when many wait, and whenever the run's own row is written. Readers (`fedvsr.records`)
    see all as one.

    Args:
        folder: the run's folder.
        identity: the columns that all rows share.
        write_s: seconds between two writings of the tables.
        part_rows: rows of a table's file after which the next ones go to another file.
    """

    def __init__(
        self,
        folder: Path,
        identity: Row,
        write_s: float = _WRITE_S,
        part_rows: int = PART_ROWS,
    ) -> None:
        self._folder, self._identity, self._write_s = folder, identity, write_s
        self._journal = Journal(folder)
        entries = self._journal.entries()
        self._tables = {name: GrowingFiles(folder, name, entries, part_rows) for name in GROWING}
        self._number = max(table.last_entry for table in self._tables.values())
        self._most_waiting = _WAITING * part_rows
        self._next_writing = time.monotonic()

    def write_run(self, row: Row) -> None:
        """Replace the row of the run, once the tables hold all that was added.

        Unless its status is `running`, each table is then in one file.
        """
        self._write_tables()
        if row.get("status") != "running":
            for table in self._tables.values():
                table.join(self._number)
        self._write("runs", self._table("runs", [row]))

    def write_partition(self, tables: Iterable[pa.Table]) -> None:
        """Write which client holds which clips: the columns that rows do not share, in tables."""
        path, schema = self._folder / "partition.parquet", SCHEMAS["partition"]
        write_tables(path, schema, map(self._of_rows, tables))

    def _of_rows(self, columns: pa.Table) -> pa.Table:
        """Rows of `partition` with the columns that all rows share."""
        schema = SCHEMAS["partition"]
        arrays = [
            columns[field.name]
            if field.name in columns.column_names
            else pa.repeat(pa.scalar(self._identity.get(field.name), field.type), len(columns))
            for field in schema
        ]
        return pa.Table.from_arrays(arrays, schema=schema)

    def write_round(self, round_idx: int, row: Row, clients: Sequence[Row]) -> None:
        """Add a round's training, or replace an earlier one of the same round and its scores.

        A resumed run repeats the rounds after its checkpoint: old rows stay until new ones replace
        them, so a finished round is never missing.
        """
        self._add(round_idx, {"evaluations": [], "clients": clients, "rounds": [row]})

    def begin_round(self, round_idx: int, epsilon: float | None) -> None:
        """Add a row if the round has none.

        Round 0 trains nobody. A later round has lost its row, and what it counted is not known.
        """
        if not self._tables["rounds"].of_round(round_idx):
            zero = dict.fromkeys(_COUNTS, 0) | dict.fromkeys(("train_s", "aggregate_s"), 0.0)
            row = zero if round_idx == 0 else {}
            self._add(round_idx, {"rounds": [{**row, "epsilon": epsilon}]})

    def write_scores(self, round_idx: int, means: Row, rows: Sequence[Row]) -> None:
        """Add the scores of a round that has a row."""
        (row,) = self._tables["rounds"].of_round(round_idx)
        self._add(round_idx, {"evaluations": rows, "rounds": [{**row, **means}]})

    def has_scores(self, round_idx: int, due: bool = True) -> bool:
        """Whether the scoring of a round is done: its scores are written, or none were `due`."""
        rows = self._tables["rounds"].of_round(round_idx)
        done = bool(rows) and all(row.get("evaluate_s") is not None for row in rows)
        # The file of scores may have been deleted.
        return done and (not due or bool(self._tables["evaluations"].of_round(round_idx)))

    def of_round(self, name: str, round_idx: int) -> list[dict[str, Any]]:
        """The rows of a round in a table that grows by rounds."""
        return self._tables[name].of_round(round_idx)

    def add_fault(self, row: Row) -> None:
        """Add a failure. Failures stay when their round is repeated, because they happened."""
        self._add(None, {"faults": [row]})

    def last_evaluation(self) -> Row:
        """The scores of the run's row, of the last evaluated round; empty if none is."""
        rounds = read_table(self._folder, "evaluations", ["round_idx"])["round_idx"]
        last = max(rounds.unique().to_pylist(), default=None)
        rows = [] if last is None else self._tables["evaluations"].of_round(last)
        return headline(pa.Table.from_pylist(rows, SCHEMAS["evaluations"]))

    def _add(self, round_idx: int | None, added: Mapping[str, Sequence[Row]]) -> None:
        of_round = {} if round_idx is None else {"round_idx": round_idx}
        rows = {
            # Through a table, so that JSON gets plain values of the schema's types.
            name: [
                {key: value for key, value in row.items() if value is not None}
                for row in self._table(name, [{**row, **of_round} for row in own]).to_pylist()
            ]
            for name, own in added.items()
        }
        self._number += 1
        self._journal.append(Entry(self._number, round_idx, rows))
        for name, own in rows.items():
            self._tables[name].add(round_idx, own)
        waiting = max(table.num_added for table in self._tables.values())
        if time.monotonic() >= self._next_writing or waiting >= self._most_waiting:
            self._write_tables()

    def _write_tables(self) -> None:
        """Write the tables that lack rows, and empty the journal."""
        began = time.monotonic()
        for table in self._tables.values():
            table.write(self._number)
        self._journal.clear()
        now = time.monotonic()
        self._next_writing = now + max(self._write_s, (now - began) / _SHARE)

    def _table(self, name: str, rows: Sequence[Row]) -> pa.Table:
        schema = SCHEMAS[name]
        full = [{**self._identity, **row} for row in rows]
        unknown = {key for row in full for key in row} - set(schema.names)
        assert not unknown, f"columns that {name} does not have: {sorted(unknown)}"
        return pa.Table.from_pylist(full, schema=schema)

    def _write(self, name: str, table: pa.Table) -> None:
        write_parquet(self._folder / f"{name}.parquet", table)
