"""Writes one table of a run that grows by rounds, at the same cost whatever came before.

Design: docs/design/0019-scale.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedvsr.checked import RowGroups, require_whole, write_parquet, write_tables
from fedvsr.journal import Entry, Rows
from fedvsr.parts import (
    COVERS,
    LAST_ENTRY,
    LAST_PART,
    number_of,
    ordered,
    part_files,
    part_path,
    spans,
)
from fedvsr.schemas import SCHEMAS
from fedvsr.stored import GrowingTable, empty, read_part

_VERSION = b"schema_version"
_KEPT = (LAST_ENTRY.encode(), LAST_PART.encode())
PART_ROWS = 32_768
"""Rows after which a file is full: later ones go to the next part."""
# Rows of a row group of the one file that a run leaves.
_GROUP_ROWS = 131_072


class GrowingFiles:
    """A table's files. The newest one is replaced as rows come, until it is full.

    Only that file's rows are in memory.

    Args:
        folder: the run's.
        name: the table.
        entries: the journal's.
        part_rows: rows after which a file is full.
    """

    def __init__(
        self, folder: Path, name: str, entries: Sequence[Entry], part_rows: int = PART_ROWS
    ) -> None:
        self._folder, self._name, self._part_rows = folder, name, part_rows
        self._schema = SCHEMAS[name]
        self.last_entry = self._open()
        self.last_entry = self._newest.add_entries(folder, name, entries, self.last_entry)

    def _open(self) -> int:
        """Read the newest file, unless it is full; returns the last entry that the files hold."""
        self._full = list[Path]()
        own = part_path(self._folder, self._name, 0)
        last_part = int(_metadata(own).get(LAST_PART.encode(), b"0"))
        for path in part_files(self._folder, self._name):
            if number_of(path) > last_part:
                self._full.append(path)
            else:
                # The table's own file holds it, but the process died before it was removed.
                path.unlink()
        self._full = [own, *self._full] if own.exists() else self._full
        last_entry = max(
            (int(_metadata(path).get(LAST_ENTRY.encode(), b"0")) for path in self._full), default=0
        )
        self._last_part, self._number = last_part, last_part + 1
        self._newest = GrowingTable(empty(self._schema))
        if not self._full:
            self._number = 0
        elif sum(RowGroups(self._full[-1]).sizes) < self._part_rows:
            path = self._full.pop()
            found = read_part(path, self._name, self._schema)
            self._number = found.number
            self._newest = GrowingTable(found.table, found.covers)
        else:
            self._number = max(last_part, number_of(self._full[-1])) + 1
        for path in self._full:
            self._renew(path)
        return last_entry

    @property
    def num_added(self) -> int:
        """Rows that are in no file yet."""
        return self._newest.num_added

    def add(self, round_idx: int | None, rows: Rows) -> None:
        """Add rows; those of a round replace the round's earlier ones."""
        self._newest.add(round_idx, rows)

    def of_round(self, round_idx: int) -> list[dict[str, Any]]:
        """The rows of a round."""
        rows = self._newest.of_round(round_idx)
        if rows or round_idx in self._newest.covers:
            return rows
        for path in reversed(self._full):
            found = read_part(path, self._name, self._schema, since=round_idx)
            rows = GrowingTable(found.table).of_round(round_idx)
            if rows or round_idx in found.covers:
                return rows
        return []

    def write(self, last_entry: int) -> None:
        """Write the rows that are in no file yet.

        Args:
            last_entry: number of the last journal entry.
        """
        if not self._newest.changed:
            return
        table, covers = self._newest.merged(), self._newest.covers
        metadata = {LAST_ENTRY: str(last_entry)}
        if self._number:
            metadata[COVERS] = spans(covers)
        else:
            metadata[LAST_PART] = str(self._last_part)
        path = part_path(self._folder, self._name, self._number)
        write_parquet(path, table.replace_schema_metadata({**self._schema.metadata, **metadata}))
        self._newest = GrowingTable(table, covers if self._number else ())
        if len(table) >= self._part_rows:
            self._full.append(path)
            self._number = max(self._number, self._last_part) + 1
            self._newest = GrowingTable(empty(self._schema))

    def join(self, last_entry: int) -> None:
        """Move the rows of all parts to the table's own file, once `write` has written them."""
        parts = part_files(self._folder, self._name)
        if not parts:
            return
        own = part_path(self._folder, self._name, 0)
        files = [own, *parts] if own.exists() else parts
        metadata = {LAST_ENTRY: str(last_entry), LAST_PART: str(number_of(parts[-1]))}
        schema = self._schema.with_metadata({**self._schema.metadata, **metadata})
        write_tables(own, schema, self._rows(files, schema))
        for path in parts:
            path.unlink()
        self._open()

    @staticmethod
    def _rows(files: Sequence[Path], schema: pa.Schema) -> Iterator[pa.Table]:
        for path in files:
            require_whole(path)
        for table in ordered([RowGroups(path) for path in files], _GROUP_ROWS):
            yield table.replace_schema_metadata(schema.metadata)

    def _renew(self, path: Path) -> None:
        """Write a full file of an older version again, so that all have the same columns."""
        metadata = RowGroups(path).metadata
        if metadata.get(_VERSION) != self._schema.metadata[_VERSION]:
            table = read_part(path, self._name, self._schema).table
            write_parquet(
                path,
                table.replace_schema_metadata(
                    self._schema.metadata
                    | {key: value for key, value in metadata.items() if key in _KEPT}
                ),
            )


def _metadata(path: Path) -> Mapping[bytes, bytes]:
    return RowGroups(path).metadata if path.exists() else {}
