"""Reads a run's table from its files and the journal, in the newest schema.

`fedvsr.records` has the schemas and the functions that others call.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.checked import RowGroups, read_parquet, require_whole
from fedvsr.errors import UserError
from fedvsr.journal import Entry, Journal, Rows
from fedvsr.parts import ROUND, Stored, merged, read_parts
from fedvsr.upgrades import upgraded_rows, upgraded_table

_VERSION = b"schema_version"
# The first version that has all columns; those of earlier ones are upgraded, or null.
_UPGRADED = 7


def read_fixed(
    folder: Path, name: str, schema: pa.Schema, columns: Sequence[str] | None = None
) -> pa.Table:
    """A table that one writing makes; see `records.read_table`."""
    wanted = _subset(schema, columns)
    files = read_parts(folder, name, partial(read_part, name=name, schema=schema, columns=columns))
    return files[0].table if files else empty(wanted)


def read_growing(
    folder: Path,
    name: str,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    since: int | None = None,
) -> pa.Table:
    """A table to which a run adds rows; see `records.read_table`."""
    # Before the table: an entry that moves to the table meanwhile is then seen, by its number, to
    # be in both.
    entries = Journal(folder).entries()
    needed = None if columns is None else list(dict.fromkeys([*columns, ROUND]))
    read = partial(read_part, name=name, schema=schema, columns=needed, since=since)
    files = read_parts(folder, name, read)
    if len(files) == 1 and not entries and since is None:
        return files[0].table if columns is None else files[0].table.select(list(columns))
    newest = GrowingTable(empty(_subset(schema, needed)))
    newest.add_entries(folder, name, entries, max([f.last_entry for f in files], default=0))
    if since is not None:
        newest.forget_before(since)
    parts = [*((file.table, file.covers) for file in files), (newest.merged(), newest.covers)]
    table = merged(parts).combine_chunks()
    return table if columns is None else table.select(list(columns))


def read_part(
    path: Path,
    name: str,
    schema: pa.Schema,
    columns: Sequence[str] | None = None,
    since: int | None = None,
) -> Stored:
    """What a file of a table holds, in the newest schema; see `records.read_table`.

    Raises:
        FileNotFoundError: the file is missing.
        DamagedError: it is not as it was written.
        UserError: a newer version wrote it.
    """
    if since is None:
        return _whole(path, name, schema, columns)
    groups = RowGroups(path)
    version = _version(path, groups.metadata, schema)
    late = [
        i
        for i, size in enumerate(groups.sizes)
        if size and ((span := groups.span(i, ROUND)) is None or span[1] >= since)
    ]
    if version < _UPGRADED or (late and len(groups.sizes) == 1):
        found = _whole(path, name, schema, columns)
    else:
        table = _in_schema(groups.read(late, columns), _subset(schema, columns))
        found = Stored.of(path, table, groups.metadata)
    recent = _mask(np.array(found.table[ROUND].to_pylist(), np.int64) >= since)
    covers = frozenset(i for i in found.covers if i >= since)
    return replace(found, table=found.table.filter(recent), covers=covers)


def num_rows(path: Path) -> int:
    """The rows of a file, by its footer alone.

    Raises:
        DamagedError: it is not parquet.
    """
    return sum(RowGroups(path).sizes)


def require_readable(path: Path, schema: pa.Schema) -> None:
    """Check a file of a table. One row group is in memory at a time.

    Raises:
        DamagedError: it is not as it was written.
        UserError: a newer version wrote it.
    """
    is_marked, groups = require_whole(path), RowGroups(path)
    _version(path, groups.metadata, schema)
    if not is_marked:
        for group in range(len(groups.sizes)):
            groups.read([group])


def _whole(path: Path, name: str, schema: pa.Schema, columns: Sequence[str] | None) -> Stored:
    table = read_parquet(path, columns)
    metadata = table.schema.metadata or {}
    if _version(path, metadata, schema) < _UPGRADED:
        # Columns of an older version are made from others.
        table = table if columns is None else read_parquet(path)
        table = upgraded_table(name, table, path.parent)
    return Stored.of(path, _in_schema(table, _subset(schema, columns)), metadata)


def _version(path: Path, metadata: Mapping[bytes, bytes], schema: pa.Schema) -> int:
    """The version of a file's schema.

    Raises:
        UserError: a newer version of fedvsr wrote it.
    """
    version, newest = int(metadata.get(_VERSION, b"0")), int(schema.metadata[_VERSION])
    if not 1 <= version <= newest:
        raise UserError(f"{path} has schema version {version}; this fedvsr reads 1 to {newest}")
    return version


def _in_schema(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table with the columns of a schema; those that it lacks are null."""
    columns = dict(zip(table.schema.names, table.columns, strict=True))
    arrays = [
        columns[field.name] if field.name in columns else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _mask(chosen: npt.NDArray[np.bool_]) -> pa.Array:
    """What `pa.Table.filter` takes."""
    # Not by `pa.array`, `pa.scalar` or `to_numpy`, which load pandas.
    bits = pa.py_buffer(np.packbits(chosen, bitorder="little"))
    return pa.Array.from_buffers(pa.bool_(), len(chosen), [None, bits])


def _subset(schema: pa.Schema, columns: Sequence[str] | None) -> pa.Schema:
    if columns is None:
        return schema
    return pa.schema([schema.field(name) for name in columns], metadata=schema.metadata)


def empty(schema: pa.Schema) -> pa.Table:
    """A table without rows."""
    # Not `schema.empty_table()`, for which pyarrow loads pandas.
    return pa.Table.from_arrays([pa.nulls(0, field.type) for field in schema], schema=schema)


class GrowingTable:
    """Rows as a file holds them, and rows that were added since.

    Args:
        table: the file's rows, ordered by round.
        covers: rounds that the file covers, see `fedvsr.parts`.
    """

    def __init__(self, table: pa.Table, covers: Collection[int] = ()) -> None:
        self._table = table
        self._covers = frozenset(covers)
        self._rounds = dict[int, Rows]()
        self._others = list[Mapping[str, object]]()

    @property
    def changed(self) -> bool:
        """Whether anything was added."""
        return bool(self._rounds or self._others)

    @property
    def covers(self) -> frozenset[int]:
        """Rounds of which earlier rows do not count."""
        return self._covers | self._rounds.keys()

    @property
    def num_added(self) -> int:
        """Rows that were added."""
        return len(self._others) + sum(map(len, self._rounds.values()))

    def add(self, round_idx: int | None, rows: Rows) -> None:
        """Add rows; those of a round replace the round's earlier ones."""
        if round_idx is None:
            self._others += rows
        else:
            self._rounds[round_idx] = rows

    def add_entries(self, folder: Path, name: str, entries: Sequence[Entry], after: int) -> int:
        """Add a table's rows in the journal's entries after a number; returns the last number."""
        for entry in entries:
            if name in entry.rows and entry.number > after:
                self.add(entry.round_idx, upgraded_rows(name, entry.rows[name], folder))
        return max([after, *(entry.number for entry in entries)])

    def forget_before(self, round_idx: int) -> None:
        """Leave out the added rows of rounds before one."""
        self._rounds = {i: rows for i, rows in self._rounds.items() if i >= round_idx}
        self._others = [row for row in self._others if cast("int", row[ROUND]) >= round_idx]

    def of_round(self, round_idx: int) -> list[dict[str, Any]]:
        """The rows of a round."""
        if round_idx in self._rounds:
            return [dict(row) for row in self._rounds[round_idx]]
        rows: list[dict[str, Any]] = self._table.filter(
            pc.equal(self._table[ROUND], round_idx)
        ).to_pylist()
        return rows

    def merged(self) -> pa.Table:
        """All rows: ordered by round, but added rows that belong to none come last."""
        if not self.changed:
            return self._table
        schema = self._table.schema
        new = [row for rows in self._rounds.values() for row in rows]
        added = pa.Table.from_pylist(new, schema)
        table = merged([(self._table, ()), (added, self._rounds)])
        return pa.concat_tables(
            [table, pa.Table.from_pylist(self._others, schema)]
        ).combine_chunks()
