"""The mark by which a saved file holds a SHA-256 of itself.

`fedvsr-sha256:DIGEST:fedvsr-sha256` holds the digest of all bytes but its own 64 digits. Files of
other programs and of older versions have no mark and are read without one. One end of the mark is
enough to demand a valid one, so damage to the mark itself is noticed as well.
"""

from __future__ import annotations

import hashlib
import mmap
import re
from pathlib import Path

from fedvsr.errors import DamagedError

_WORD = b"fedvsr-sha256"
_DIGITS = 64
EMPTY = _WORD + b":" + b"0" * _DIGITS + b":" + _WORD
"""A mark whose digits are still to be filled in."""
_MARK = re.compile(_WORD + rb":([0-9a-f]{%d}):" % _DIGITS + _WORD)
_END = re.compile(_WORD + rb":|:" + _WORD)


def digits_of(data: bytes | mmap.mmap, start: int) -> tuple[slice, bytes]:
    """Where the digits of the empty mark at `start` go, and what they are."""
    first = start + len(_WORD) + 1
    return slice(first, first + _DIGITS), _digest(data, first)


def require_unchanged(
    data: bytes | mmap.mmap,
    path: Path,
    end: int | None = None,
    *,
    what: str = "is damaged",
    hint: str = "",
) -> bool:
    """Compare a file's bytes with the mark in them, if it has one; returns whether it has.

    Args:
        data: all bytes of the file.
        path: the file, for the message.
        end: the mark is searched before this byte (default: everywhere). The last one counts.
        what: what the message says about a file that has changed.
        hint: the end of the message: what to do.

    Raises:
        DamagedError: the mark is not that of these bytes, or incomplete.
    """
    mark, end = None, len(data) if end is None else end
    for match in _MARK.finditer(data, 0, end):
        mark = match
    if mark is None and not _END.search(data, 0, end):
        return False
    if mark is None or _digest(data, mark.start(1)) != mark[1]:
        problem = "its SHA-256 is not the one that it was written with"
        raise DamagedError(path, f"{what}: {problem}{hint and '; '}{hint}")
    return True


def _digest(data: bytes | mmap.mmap, start: int) -> bytes:
    """Digits of the SHA-256 of all bytes but the 64 from `start` on."""
    with memoryview(data) as view:
        sha256 = hashlib.sha256(view[:start])
        sha256.update(view[start + _DIGITS :])
    return sha256.hexdigest().encode()
