"""A growing table on disk: its own file, and parts with the rows that came when that was full.

    <run>/clients.parquet         part 0; all rows, once the run has ended
    <run>/clients-000001.parquet  part 1: rows that were added while the run worked

A part says in its metadata which rounds it covers: their rows in earlier parts do not count.
Design: docs/design/0019-scale.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.checked import RowGroups

# Metadata of a file: number of the last journal entry that it holds; of a part, the rounds that it
# covers; of a table's own file, the number of the last part that it holds.
LAST_ENTRY, COVERS, LAST_PART = "last_entry", "covers", "last_part"
ROUND = "round_idx"
_NAME = re.compile(r"-(\d{6,})\.parquet$")
# Times that a table is read again because its parts were moved to its own file meanwhile.
_TRIES = 5


@dataclass(frozen=True)
class Stored:
    """What a file of a table holds, or a part of it that was asked for."""

    number: int
    table: pa.Table
    covers: frozenset[int]
    """Rounds whose rows in earlier parts do not count."""
    last_entry: int
    last_part: int

    @classmethod
    def of(cls, path: Path, table: pa.Table, metadata: Mapping[bytes, bytes]) -> Stored:
        """What was read of a file with this metadata."""
        last_entry, last_part = (
            int(metadata.get(key.encode(), b"0")) for key in (LAST_ENTRY, LAST_PART)
        )
        return cls(number_of(path), table, covered(metadata), last_entry, last_part)


def part_path(folder: Path, name: str, number: int) -> Path:
    """The file of a table's part; number 0 is the table's own."""
    return folder / (f"{name}-{number:06d}.parquet" if number else f"{name}.parquet")


def number_of(path: Path) -> int:
    """The number of a part by its file."""
    match = _NAME.search(path.name)
    return int(match[1]) if match else 0


def part_files(folder: Path, name: str) -> list[Path]:
    """The existing files of a table's parts in their order, without the table's own."""
    return sorted(
        (path for path in folder.glob(f"{name}-*.parquet") if _NAME.search(path.name)),
        key=number_of,
    )


def read_parts(folder: Path, name: str, read: Callable[[Path], Stored]) -> list[Stored]:
    """Read the files of a table in their order; empty if there are none.

    The parts are read before the table's own file. That file says which parts were moved to it, so
    none is missed if they are moved meanwhile.

    Raises:
        FileNotFoundError: parts keep disappearing.
    """
    for _ in range(_TRIES):
        found, gone = list[Stored](), [0]
        for path in part_files(folder, name):
            try:
                found.append(read(path))
            except FileNotFoundError:
                gone.append(number_of(path))
        try:
            found.insert(0, read(part_path(folder, name, 0)))
            last = found[0].last_part
        except FileNotFoundError:
            last = 0
        if max(gone) <= last:
            # Parts that the table's own file holds were about to be removed.
            return [part for part in found if part.number == 0 or part.number > last]
    raise FileNotFoundError(f"{folder / name}*.parquet disappear while they are read")


def merged(parts: Sequence[tuple[pa.Table, Collection[int]]]) -> pa.Table:
    """One table of parts, each with the rounds that it covers: rows that count, by round.

    A round's rows keep their order. Without covered rounds, all rows keep it.
    """
    later, kept = set[int](), list[pa.Table]()
    for table, covers in reversed(parts):
        kept.append(without(table, later))
        later.update(covers)
    table = pa.concat_tables(reversed(kept))
    rounds = table[ROUND].to_numpy() if later else np.empty(0)
    if (rounds[1:] < rounds[:-1]).any():
        # Stable: the rows of a round stay in their order.
        table = table.take(pa.array(np.argsort(rounds, kind="stable")))
    return table


def without(table: pa.Table, rounds: Collection[int]) -> pa.Table:
    """A table without the rows of some rounds."""
    if not rounds or not table.num_rows:
        return table
    removed = pc.is_in(table[ROUND], value_set=pa.array(sorted(rounds), pa.int64()))
    return table.filter(pc.invert(removed)) if pc.any(removed).as_py() else table


def ordered(parts: Sequence[RowGroups], chunk_rows: int) -> Iterator[pa.Table]:
    """The rows of `merged` in tables of about `chunk_rows`; one row group is in memory at a time.

    Args:
        parts: a table's files in their order, each ordered by round.
        chunk_rows: rows of a table.
    """
    later, slices = set[int](), list[tuple[int, int, int, int, int]]()
    for index, part in reversed(list(enumerate(parts))):
        for group in range(len(part.sizes)):
            rounds = part.read([group], [ROUND])[ROUND].to_numpy()
            changes = (np.flatnonzero(rounds[1:] != rounds[:-1]) + 1).tolist()
            for start, end in pairwise([0, *changes, len(rounds)]):
                if end > start and int(rounds[start]) not in later:
                    slices.append((int(rounds[start]), index, group, start, end))
        later |= covered(part.metadata)
    slices.sort(key=None if later else lambda one: one[1:])
    waiting, num_waiting = list[pa.Table](), 0
    held: tuple[tuple[int, int], pa.Table] | None = None
    for index, group, start, end in _joined(slices):
        if held is None or held[0] != (index, group):
            held = (index, group), parts[index].read([group])
        waiting.append(held[1].slice(start, end - start))
        num_waiting += end - start
        if num_waiting >= chunk_rows:
            yield pa.concat_tables(waiting).combine_chunks()
            waiting, num_waiting = [], 0
    if waiting:
        yield pa.concat_tables(waiting).combine_chunks()


def _joined(
    slices: Iterable[tuple[int, int, int, int, int]],
) -> Iterator[tuple[int, int, int, int]]:
    """Slices without their rounds; neighbours of one row group are joined."""
    last: tuple[int, int, int, int] | None = None
    for _, index, group, start, end in slices:
        if last and last[:2] == (index, group) and last[3] == start:
            last = (index, group, last[2], end)
            continue
        if last:
            yield last
        last = (index, group, start, end)
    if last:
        yield last


def covered(metadata: Mapping[bytes, bytes]) -> frozenset[int]:
    """The rounds that a file of this metadata covers."""
    spans = json.loads(metadata.get(COVERS.encode(), b"[]"))
    return frozenset(i for first, last in spans for i in range(first, last + 1))


def spans(rounds: Iterable[int]) -> str:
    """Rounds as metadata: the first and the last of each stretch, as JSON."""
    found = list[list[int]]()
    for i in sorted(rounds):
        if found and found[-1][1] == i - 1:
            found[-1][1] = i
        else:
            found.append([i, i])
    return json.dumps(found)
