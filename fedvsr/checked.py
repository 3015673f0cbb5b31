"""Tensors and tables in files that hold a SHA-256 of themselves (see `fedvsr.checksum`).

A safetensors file has it in its metadata. A parquet file has it between the last row group and the
footer, which readers skip; its pages have checksums of their own too, for other readers.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from fedvsr.checksum import EMPTY, digits_of, require_unchanged
from fedvsr.errors import DamagedError
from fedvsr.files import replacing

# The single entry of a safetensors file's metadata: several are written in an order that differs.
_ENTRY = "fedvsr"
# Bytes of a parquet file's end: the footer's length and `PAR1`.
_TAIL = 8


def write_tensors(
    path: Path, tensors: Mapping[str, np.ndarray[Any, Any]], metadata: Mapping[str, object]
) -> None:
    """Write named tensors, and metadata that JSON can hold, as a safetensors file."""
    entry = json.dumps({"checksum": EMPTY.decode(), **metadata})
    with replacing(path) as aside:
        try:
            save_file(dict(tensors), str(aside), {_ENTRY: entry})
        except SafetensorError as error:
            # Releases before 0.8 give an error of the system only as text.
            if "No space left" not in str(error):
                raise
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from None
        with aside.open("r+b") as file, mmap.mmap(file.fileno(), 0) as data:
            where, digits = digits_of(data, data.find(EMPTY))
            data[where] = digits
            data.flush()


def read_tensors(
    path: Path, names: Collection[str] | None = None
) -> tuple[dict[str, np.ndarray[Any, Any]], dict[str, Any]]:
    """Read a file of `write_tensors`: its tensors by name, and its metadata.

    Args:
        path: the file. All its bytes are compared with its checksum.
        names: the tensors to read, as far as the file has them (default: all).

    Raises:
        DamagedError: the file is missing, incomplete, or not as it was written.
    """
    metadata = read_metadata(path)
    try:
        with safe_open(str(path), framework="numpy") as file:
            # An open file has `keys`, but is not iterable. A copy: what the file returns is a view.
            found = [name for name in file.keys() if names is None or name in names]  # noqa: SIM118
            return {name: np.array(file.get_tensor(name)) for name in found}, metadata
    except (SafetensorError, OSError) as error:
        raise DamagedError(path, f"is damaged ({first_line(error)})") from None


def read_metadata(path: Path) -> dict[str, Any]:
    """Verify a safetensors file, and return the metadata that fedvsr wrote; empty for other files.

    Raises:
        DamagedError: the file is missing, not as it was written, or has no valid header.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if not size:
                raise DamagedError(path, "is damaged: it is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                end = 8 + int.from_bytes(data[:8], "little")
                require_unchanged(data, path, min(end, size))
                header = data[8:end] if end <= size else b""
    except OSError as error:
        raise DamagedError(path, f"cannot be read: {first_line(error)}") from None
    return _metadata_of(header, path)


def _metadata_of(header: bytes, path: Path) -> dict[str, Any]:
    try:
        content = json.loads(header, object_pairs_hook=_without_duplicates)
        metadata = json.loads(content.get("__metadata__", {}).get(_ENTRY, "{}"))
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise DamagedError(path, f"is no safetensors file: {_cause(error)}") from None
    if not isinstance(metadata, dict):
        raise DamagedError(path, f"has metadata of fedvsr that is no table: {str(metadata)[:80]}")
    return metadata


def _cause(error: Exception) -> str:
    return str(error) if isinstance(error, _DuplicateError) else "its header is not valid"


class _DuplicateError(ValueError):
    """A name stands twice in a header: which of both is meant cannot be known."""


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise _DuplicateError(f"its header names {twice[:80]} twice")
    return table


def write_parquet(path: Path, table: pa.Table) -> None:
    """Write a table as a parquet file."""
    write_tables(path, table.schema, [table])


def write_tables(path: Path, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write tables of one schema, one after another, as one parquet file.

    Args:
        path: the file.
        schema: the tables'; its metadata is the file's.
        tables: each is at least one row group of the file, and none is needed after it is written.
    """
    with replacing(path) as aside:
        with pq.ParquetWriter(aside, schema, write_page_checksum=True) as writer:
            for table in tables:
                writer.write_table(table)
        _mark(aside)


def _mark(path: Path) -> None:
    """Put the checksum of a parquet file before its footer."""
    with path.open("r+b") as file:
        tail = file.seek(-_TAIL, os.SEEK_END)
        footer = tail - int.from_bytes(file.read(4), "little")
        file.seek(footer)
        end = file.read()
        file.seek(footer)
        file.write(EMPTY + end)
        file.flush()
        with mmap.mmap(file.fileno(), 0) as data:
            where, digits = digits_of(data, footer)
            data[where] = digits
            data.flush()


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Read a parquet file.

    Args:
        path: the file. All its bytes are compared with its checksum.
        columns: those to decode, as far as the file has them (default: all).

    Raises:
        FileNotFoundError: the file is missing.
        DamagedError: it is not as it was written, or not parquet.
    """
    data = path.read_bytes()
    require_unchanged(data, path)
    with _explained(path):
        file = pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True)
        # Without Arrow's threads: starting them takes longer than reading a small table, and a
        # command that ends at once may abort while they start.
        return file.read(columns=_existing(file, columns), use_threads=False)


def require_whole(path: Path) -> bool:
    """Compare a file's bytes with its checksum, if it has one, without reading it into memory.

    Returns:
        Whether it has a checksum.

    Raises:
        FileNotFoundError: the file is missing.
        DamagedError: it is not as it was written.
    """
    with path.open("rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise DamagedError(path, "is damaged: it is empty")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return require_unchanged(data, path)


class RowGroups:
    """A parquet file that is read by its row groups, each checked by the checksums of its pages.

    Its SHA-256 is not compared, as that would read all of it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file is missing.
        DamagedError: it is not parquet.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _explained(path):
            self._file = pq.ParquetFile(path, page_checksum_verification=True)
        self.metadata: Mapping[bytes, bytes] = self._file.schema_arrow.metadata or {}
        self.sizes = [self._group(i).num_rows for i in range(self._file.num_row_groups)]

    def span(self, group: int, column: str) -> tuple[Any, Any] | None:
        """The least and the greatest value of a row group's column; None if the file lacks them."""
        index = self._file.schema_arrow.get_field_index(column)
        statistics = self._group(group).column(index).statistics if index >= 0 else None
        if statistics is None or not statistics.has_min_max:
            return None
        return statistics.min, statistics.max

    def read(self, groups: Sequence[int], columns: Sequence[str] | None = None) -> pa.Table:
        """Some row groups; of the columns, those that the file has.

        Raises:
            DamagedError: a page is not as it was written.
        """
        with _explained(self.path):
            return self._file.read_row_groups(
                list(groups), columns=_existing(self._file, columns), use_threads=False
            )

    def _group(self, group: int) -> pq.RowGroupMetaData:
        return self._file.metadata.row_group(group)


def _existing(file: pq.ParquetFile, columns: Sequence[str] | None) -> list[str] | None:
    if columns is None:
        return None
    return [name for name in columns if name in file.schema_arrow.names]


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedError(path, f"is damaged ({first_line(error)})") from None


def first_line(error: Exception) -> str:
    """The first line of what an error says."""
    text = (getattr(error, "strerror", None) or str(error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
