"""Clips as rows of an Arrow table: a million registered clients cost bytes, and no objects.

Design: docs/design/0019-scale.md.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields
from itertools import chain, islice
from pathlib import Path
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from fedvsr.data.clips import Clip
from fedvsr.data.owned_clip import OwnedClip

_Ids = npt.NDArray[np.int64]
# What many clips have in common is stored once.
_SHARED = ("label", "folder", "degradation")
_KINDS = {
    "str": pa.string(),
    "int": pa.int32(),
    "bool": pa.bool_(),
    "tuple[str, ...]": pa.list_(pa.string()),
}
SCHEMA = pa.schema(
    pa.field(
        field.name,
        pa.dictionary(pa.int32(), pa.string())
        if field.name in _SHARED
        else _KINDS[str(field.type)],
    )
    for field in fields(OwnedClip)
)
"""The columns of a table of clips: the fields of `OwnedClip`, empty for what is no such clip."""
_DEFAULTS = {f.name: f.default for f in fields(OwnedClip) if f.default is not MISSING}
_DEFAULTS |= dict.fromkeys(("stores", "number"))
# Clips that are made, or read, at once.
_BLOCK = 16_384
# Bytes from which a table is worth a file.
_MAPPED_BYTES = 2**20


class ClipTable(Sequence[Clip]):
    """A sequence of clips that makes each as it is asked for.

    Args:
        table: a row per clip, with the columns of `SCHEMA`.
    """

    def __init__(self, table: pa.Table) -> None:
        self.table = table.unify_dictionaries().combine_chunks()

    @classmethod
    def of(cls, clips: Iterable[Clip]) -> ClipTable:
        """The table of some clips."""
        if isinstance(clips, cls):
            return clips
        left = iter(clips)
        blocks = list[pa.Table]()
        while block := list(islice(left, _BLOCK)):
            columns = [[getattr(clip, name, None) for clip in block] for name in SCHEMA.names]
            arrays = [pa.array(own, f.type) for own, f in zip(columns, SCHEMA, strict=True)]
            blocks.append(pa.Table.from_arrays(arrays, schema=SCHEMA))
        empty = [pa.nulls(0, field.type) for field in SCHEMA]
        return cls(pa.concat_tables([pa.Table.from_arrays(empty, schema=SCHEMA), *blocks]))

    @classmethod
    def of_columns(cls, columns: Mapping[str, Any], num_rows: int) -> ClipTable:
        """The table of these columns of `SCHEMA`; others have the value that a `Clip` has.

        Args:
            columns: by name, a value for each row, or one for all of them.
            num_rows: the number of rows.

        Raises:
            KeyError: a column is missing for which a `Clip` has no value.
            TypeError: a value is of another kind.
            ValueError: the same; Arrow raises both.
        """
        arrays = list[Any]()
        for field in SCHEMA:
            values = columns.get(field.name, _DEFAULTS.get(field.name, MISSING))
            if values is MISSING:
                raise KeyError(field.name)
            if values is None:
                values = pa.nulls(num_rows, field.type)
            elif isinstance(values, str) and field.name in _SHARED:
                codes = pa.array(np.zeros(num_rows, np.int32))
                values = pa.DictionaryArray.from_arrays(codes, pa.array([values], pa.string()))
            elif isinstance(values, str | int):
                values = pa.repeat(pa.scalar(values, field.type), num_rows)
            elif isinstance(values, pa.Array | pa.ChunkedArray):
                values = values.cast(field.type)
            else:
                values = pa.array(values, field.type)
            arrays.append(values)
        return cls(pa.Table.from_arrays(arrays, schema=SCHEMA))

    @classmethod
    def joined(cls, tables: Iterable[ClipTable]) -> ClipTable:
        """The clips of several tables, one after another."""
        own = [clips.table for clips in tables]
        return cls(pa.concat_tables(own)) if own else cls.of(())

    def __len__(self) -> int:
        return int(self.table.num_rows)

    @overload
    def __getitem__(self, index: int) -> Clip: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Clip, ...]: ...
    def __getitem__(self, index: int | slice) -> Clip | tuple[Clip, ...]:
        """A clip, or a tuple of clips."""
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return self.between(chosen, chosen + 1)[0]
        return tuple(self.between(i, i + 1)[0] for i in chosen)

    def __iter__(self) -> Iterator[Clip]:
        for first in range(0, len(self), _BLOCK):
            yield from self.between(first, first + _BLOCK)

    def between(self, first: int, end: int) -> tuple[Clip, ...]:
        """The clips from one index up to another."""
        return tuple(map(_clip, self.table.slice(first, end - first).to_pylist()))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def column(self, name: str) -> pa.Array:
        """A column as one array; of what many clips share, the values themselves."""
        column = self.table[name]
        column = column.cast(pa.string()) if name in _SHARED else column
        return column.combine_chunks()

    def coded(self, name: str) -> tuple[list[str], _Ids]:
        """The values of a column that many clips share, and the place in them of each clip's."""
        column = self.table[name].combine_chunks()
        # The dictionary of a table that was cut may have values that no clip has.
        used, codes = np.unique(column.indices.to_numpy(), return_inverse=True)
        return column.dictionary.take(pa.array(used)).to_pylist(), codes

    def labels(self) -> tuple[list[str], _Ids]:
        """The labels, sorted, and the place in them of each clip's label."""
        names, codes = self.coded("label")
        labels = sorted(names)
        place = {label: i for i, label in enumerate(labels)}
        return labels, np.array([place[name] for name in names], np.int64)[codes]

    def take(self, indices: _Ids) -> ClipTable:
        """The clips at some indices, in this order."""
        return ClipTable(self.table.take(pa.array(indices)))

    def where(self, chosen: pa.Array) -> ClipTable:
        """The clips for which a Boolean array is true."""
        return ClipTable(self.table.filter(chosen))

    def move_to_disk(self, folder: Path) -> None:
        """Keep the clips in a file that is mapped into memory from now on, unless they are few.

        The file has no name once it is open: no other process can change it, and the system removes
        it with this process.

        Args:
            folder: a folder on a disk with room.
        """
        if self.table.nbytes < _MAPPED_BYTES:
            return
        path = folder / f".clips.{os.getpid()}.tmp"
        try:
            with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
                writer.write_table(self.table)
            self.table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            pa.default_memory_pool().release_unused()
        finally:
            path.unlink(missing_ok=True)


def _clip(row: dict[str, Any]) -> Clip:
    stores, number = row.pop("stores"), row.pop("number")
    return OwnedClip(**row, stores=tuple(stores), number=number) if stores else Clip(**row)


class ClientClips(Sequence[tuple[Clip, ...]]):
    """Each registered client's clips, by client id.

    Args:
        clips: all clips in the order of their clients.
        ends: by client, the number of clips up to and including its own.
    """

    def __init__(self, clips: ClipTable, ends: _Ids) -> None:
        self.clips, self._ends = clips, ends

    @classmethod
    def of(cls, clients: Iterable[Sequence[Clip]]) -> ClientClips:
        """The table of some clients' clips."""
        if isinstance(clients, cls):
            return clients
        clients = list(clients)
        ends = np.cumsum([len(own) for own in clients], dtype=np.int64)
        return cls(ClipTable.of(chain.from_iterable(clients)), ends)

    def __len__(self) -> int:
        return len(self._ends)

    @overload
    def __getitem__(self, index: int) -> tuple[Clip, ...]: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[tuple[Clip, ...], ...]: ...
    def __getitem__(self, index: int | slice) -> tuple[Clip, ...] | tuple[tuple[Clip, ...], ...]:
        """A client's clips, or those of several clients."""
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            first = int(self._ends[chosen - 1]) if chosen else 0
            return self.clips.between(first, int(self._ends[chosen]))
        return tuple(self[i] for i in chosen)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    @property
    def counts(self) -> _Ids:
        """By client, its clips."""
        return np.diff(self._ends, prepend=0)

    @property
    def sizes(self) -> _Ids:
        """By client, the frames of its clips."""
        frames = np.cumsum(self.clips.table["num_frames"].to_numpy(), dtype=np.int64)
        before = np.concatenate([np.zeros(1, np.int64), frames])[np.r_[0, self._ends]]
        return np.diff(before)

    def rows(self) -> pa.Table:
        """A row per clip with its `client_id`, in the order of clients."""
        ids = np.repeat(np.arange(len(self)), self.counts)
        return self.clips.table.add_column(0, "client_id", pa.array(ids, pa.int64()))

    def move_to_disk(self, folder: Path) -> None:
        """Keep the clips in a file from now on; see `ClipTable.move_to_disk`."""
        self.clips.move_to_disk(folder)


def label_counts(clients: ClientClips) -> tuple[list[str], _Ids]:
    """The labels, sorted, and the number of clips by label (rows) and client (columns)."""
    labels, codes = clients.clips.labels()
    counts = np.zeros((len(labels), len(clients)), np.int64)
    np.add.at(counts, (codes, np.repeat(np.arange(len(clients)), clients.counts)), 1)
    return labels, counts
