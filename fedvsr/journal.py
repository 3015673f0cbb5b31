"""Rows that were added to a run's tables since these were last written: a line per addition.

A parquet file can only be replaced as a whole, so a table that was replaced after every round would
cost more with every round. A line is appended instead, at the same cost whatever came before it.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fedvsr.errors import DamagedError

# First in the folder's order of names, so that a copy of the folder takes it before the tables:
# rows that are written to a table meanwhile are then in both, and never in neither.
NAME = "added.jsonl"

Rows = Sequence[Mapping[str, object]]


@dataclass(frozen=True)
class Entry:
    """Rows that were added together. They are on disk together, or not at all."""

    number: int
    """Counts the entries of a run, from 1. A table's file says which was the last that it holds."""
    round_idx: int | None
    """Round whose earlier rows these replace; None if they replace none."""
    rows: Mapping[str, Rows]
    """By table; an empty list removes the round's rows."""


class Journal:
    """The file of a run's newest rows. One process at a time writes it."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / NAME
        self._end: int | None = None

    def entries(self) -> list[Entry]:
        """The entries, oldest first. One that was being written when its process died is left out.

        Raises:
            DamagedError: an entry is damaged.
        """
        found = []
        *lines, _ = self._read().split(b"\n")
        for number, line in enumerate(lines, start=1):
            checksum, _, text = line.partition(b" ")
            if checksum != _checksum(text):
                raise DamagedError(self.path, f"is damaged in line {number}")
            found.append(Entry(**json.loads(text)))
        return found

    def append(self, entry: Entry) -> None:
        """Add an entry. It is on disk when this returns."""
        text = json.dumps(vars(entry), separators=(",", ":")).encode()
        line = _checksum(text) + b" " + text + b"\n"
        if self._end is None:
            self._end = self._read().rfind(b"\n") + 1
        with self.path.open("ab") as file:
            # A line that a crash or a full disk has cut off.
            file.truncate(self._end)
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        if self._end == 0:
            _sync(self.path.parent)
        self._end += len(line)

    def clear(self) -> None:
        """Forget all entries, because the tables hold them."""
        self.path.unlink(missing_ok=True)
        self._end = 0

    def _read(self) -> bytes:
        try:
            return self.path.read_bytes()
        except FileNotFoundError:
            return b""


def _checksum(text: bytes) -> bytes:
    return b"%08x" % zlib.crc32(text)


def _sync(folder: Path) -> None:
    """Sync a folder to disk, so that a new file in it is found after a power loss."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
