"""Write files and folders so that they are either complete or missing."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success, sync it to disk and rename it to `path`.

    Raises:
        OSError: the file cannot be written; also if the library that wrote it raised an exception
            of its own for an error of the system.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield temporary
        except Exception as error:
            # safetensors wraps the system's errors in an exception of its own.
            if not isinstance(error, OSError) and (match := _OS_ERROR.search(str(error))):
                number = int(match[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            raise
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
        # The rename is on disk only after the folder is synced too.
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new temporary folder to fill; on success, rename it to `path`."""
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
