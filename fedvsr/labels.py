"""The tags and the note that a person gives to a run: `labels.json` in the run's folder.

They are no part of the run's tables and settings, and may change at any time, also while it is
executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from fedvsr.checked_text import read_json, write_json
from fedvsr.errors import DamagedError, FileError, UserError
from fedvsr.lookup import did_you_mean

FILE = "labels.json"
_LOCK = ".labels.lock"
# A change takes milliseconds.
_LOCK_S = 10.0
_TAG = re.compile(r"\w[\w.:=+/-]{0,63}")
_MAX_TAGS = 100
_MAX_NOTE = 10_000


@dataclass(frozen=True)
class Labels:
    """What a person says about a run."""

    tags: tuple[str, ...] = ()
    """Sorted; each once."""
    note: str = ""


def read_labels(folder: Path) -> Labels:
    """The labels of a run; none if it has no file of them.

    Raises:
        DamagedError: the file is not as it was written.
    """
    path = folder / FILE
    hint = f"delete {FILE}, then give tags and note again"
    try:
        table = read_json(path)
        tags, note = table["tags"], table["note"]
        return Labels(checked_tags(tags), _checked_note(note))
    except FileNotFoundError:
        return Labels()
    except DamagedError as error:
        raise DamagedError(path, f"{error.reason}; {hint}") from None
    except (KeyError, TypeError, UserError):
        raise DamagedError(path, f"holds no tags and note; {hint}") from None
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from None


def add_tags(folder: Path, tags: Iterable[str]) -> Labels:
    """Give a run more tags, and return its labels.

    Raises:
        UserError: a text is no tag, or the labels cannot be read or written.
    """
    new = checked_tags(tags)
    with _locked(folder):
        labels = read_labels(folder)
        return _write(folder, replace(labels, tags=checked_tags((*labels.tags, *new))))


def remove_tags(folder: Path, tags: Iterable[str]) -> Labels:
    """Take tags from a run, and return its labels.

    Raises:
        UserError: the run has no such tag, or the labels cannot be read or written.
    """
    with _locked(folder):
        labels = read_labels(folder)
        remaining = list(labels.tags)
        for tag in dict.fromkeys(tags):
            if tag not in remaining:
                known = f" (it has: {', '.join(labels.tags)})" if labels.tags else ""
                hint = did_you_mean(tag, labels.tags)
                raise UserError(f"{folder.name} has no tag {tag!r}{hint}{known}")
            remaining.remove(tag)
        return _write(folder, replace(labels, tags=tuple(remaining)))


def write_note(folder: Path, note: str) -> Labels:
    """Replace a run's note, by nothing if it is empty, and return its labels.

    Raises:
        UserError: it is too long or not text, or the labels cannot be read or written.
    """
    new = _checked_note(note)
    with _locked(folder):
        return _write(folder, replace(read_labels(folder), note=new))


def checked_tags(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags sorted, each once.

    Raises:
        UserError: a text is no tag, or there are too many.
    """
    unique = sorted(set(tags))
    for tag in unique:
        if not _TAG.fullmatch(tag):
            raise UserError(
                f"{tag[:80]!r} is no tag; a tag begins with a letter or a digit, has at most 64 "
                "of them and of _ . : = + / - and no spaces"
            )
    if len(unique) > _MAX_TAGS:
        raise UserError(f"a run takes at most {_MAX_TAGS} tags; write more into its note")
    return tuple(unique)


def _checked_note(note: str) -> str:
    note = note.strip()
    if len(note) > _MAX_NOTE:
        raise UserError(f"a note takes at most {_MAX_NOTE:,} characters; this has {len(note):,}")
    # A terminal would follow an escape sequence.
    if any(not (c.isprintable() or c in "\n\t") for c in note):
        raise UserError("a note is text; this has control characters")
    return note


def _write(folder: Path, labels: Labels) -> Labels:
    try:
        write_json(folder / FILE, {"tags": list(labels.tags), "note": labels.note})
    except PermissionError as error:
        raise FileError(folder / FILE, f"cannot be written: {error.strerror}") from None
    return labels


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time change labels. A run under way does not hold this lock."""
    try:
        with FileLock(folder / _LOCK, timeout=_LOCK_S):
            yield
    except Timeout:
        raise UserError(
            f"another process changes the labels of {folder}; give the command again"
        ) from None
    except PermissionError as error:
        raise FileError(folder, f"cannot be written: {error.strerror}") from None
