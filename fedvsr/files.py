"""Files that are either whole or not there."""

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
    """Yield a path to write aside; on success it is fsynced and takes the place of `path`.

    Raises:
        OSError: it cannot be written, whatever the library that wrote made of that.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        try:
            yield aside
        except Exception as error:
            # safetensors has an exception of its own for what the system refuses.
            if not isinstance(error, OSError) and (found := _OS_ERROR.search(str(error))):
                number = int(found[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            raise
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
        # The rename itself is only on disk when the folder is.
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    finally:
        aside.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield a new folder to fill aside; on success it takes the place of `path`."""
    aside, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("tmp", "old"))
    aside.mkdir(parents=True)
    try:
        yield aside
        if path.exists():
            path.rename(old)
        aside.rename(path)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
