"""YAML and JSON files that hold a SHA-256 of themselves (see `fedvsr.checksum`).

A YAML file has it in a comment on its first line, a JSON file as its last key, `checksum`. Only
files that the program itself reads again are written so, and only they are verified: a file that a
user gives may be an edited copy of one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedvsr import yaml12
from fedvsr.checksum import EMPTY, digits_of, require_unchanged
from fedvsr.errors import DamagedError, FileError
from fedvsr.files import replacing

_COMMENT = b"# "
_KEY = "checksum"
_CHANGED = "is damaged, or was edited by hand"


def write_yaml(path: Path, text: str) -> None:
    """Write a YAML document, below a comment that holds its checksum."""
    _write(path, _COMMENT + EMPTY + b"\n" + text.encode(), len(_COMMENT))


def read_yaml(path: Path) -> dict[str, object]:
    """The settings of a file of `write_yaml`.

    Raises:
        DamagedError: it is not as it was written.
        FileError: it cannot be read, or holds no settings.
    """
    require_yaml(path)
    return yaml12.load_file(path)


def require_yaml(path: Path) -> None:
    """Check that a YAML file is as `write_yaml` has written it.

    Raises:
        DamagedError: it is not.
        FileError: it cannot be read.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FileError(path, f"cannot be read: {error.strerror}") from None
    if (_COMMENT + EMPTY).startswith(data):
        raise DamagedError(path, "is damaged: it is cut short")
    hint = "restore it, or begin anew with a copy of it"
    require_unchanged(data, path, what=_CHANGED, hint=hint)


def write_json(path: Path, table: Mapping[str, object]) -> None:
    """Write a table that JSON can hold, with its checksum; `checksum` must be none of its keys."""
    data = json.dumps({**table, _KEY: EMPTY.decode()}, indent=1).encode()
    _write(path, data, data.rindex(EMPTY))


def read_json(path: Path) -> dict[str, Any]:
    """The table of a file of `write_json`.

    Raises:
        FileNotFoundError: the file is missing.
        DamagedError: it is not as it was written, or no table.
    """
    data = path.read_bytes()
    require_unchanged(data, path, what=_CHANGED)
    try:
        table = json.loads(data)
    except (ValueError, RecursionError):
        raise DamagedError(path, "is damaged: it is not JSON") from None
    if not isinstance(table, dict):
        raise DamagedError(path, "is damaged: it holds no table")
    table.pop(_KEY, None)
    return table


def _write(path: Path, data: bytes, mark: int) -> None:
    where, digits = digits_of(data, mark)
    with replacing(path) as aside:
        aside.write_bytes(data[: where.start] + digits + data[where.stop :])
