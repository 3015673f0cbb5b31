"""Write files and folders so that they are either complete or missing."""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fedvsr.errors import UserError

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
# Bytes of a file's name, of most file systems.
_MAX_NAME = 255
_OS_ERROR = re.compile(r"\(os error (\d+)\)")


def require_folder(path: Path, option: str = "--out") -> None:
    """Check that a folder can be made and written to, before anything is computed for it.

    Raises:
        UserError: its name is too long, or it or a folder above it is a file or not writable.
    """
    place = path.absolute()
    try:
        # Room for the names of the files in it.
        os.stat(place / ("x" * _MAX_NAME))
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            raise UserError(f"{option} {_short(path)}: the name is too long") from None
    if any(len(os.fsencode(part)) > _MAX_NAME for part in place.parts):
        raise UserError(f"{option} {_short(path)}: the name is too long")
    while not os.path.lexists(place):
        place = place.parent
    if not place.is_dir():
        raise UserError(f"{option} {path}: {place} is not a folder; choose another place")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: {place} is not writable; choose another place")


def _short(path: Path) -> str:
    text = str(path)
    return text if len(text) < 80 else f"{text[:77]}..."


def missing_folders(path: Path) -> list[Path]:
    """The folders that making `path` would make, itself first."""
    return [folder for folder in (path, *path.parents) if not folder.exists()]


def remove_folders(folders: Iterable[Path]) -> None:
    """Remove folders, innermost first, as far as they are empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path to write to; on success, sync it to disk and rename it to `path`.

    The file gets the mode of any new file (0666 without the umask), whichever library writes it.

    Raises:
        OSError: the file cannot be written; also if the library that wrote it raised an exception
            of its own for an error of the system.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        # safetensors gives its files mode 0600.
        with temporary.open("wb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
        try:
            yield temporary
        except Exception as error:
            # safetensors wraps the system's errors in an exception of its own.
            if not isinstance(error, OSError) and (match := _OS_ERROR.search(str(error))):
                number = int(match[1])
                raise OSError(number, os.strerror(number), str(path)) from error
            raise
        with temporary.open("rb") as file:
            os.fchmod(file.fileno(), mode)
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


def remove_temporaries(folder: Path) -> None:
    """Remove what processes that were killed while they wrote have left in a folder and below it.

    What a living process of this machine writes stays: a report may draw into a run's folder.
    """
    for path in folder.rglob(".*.tmp"):
        pid = path.suffixes[-2].removeprefix(".") if len(path.suffixes) > 1 else ""
        if path.is_file() and pid.isdecimal() and not is_other_process(int(pid)):
            path.unlink(missing_ok=True)


def is_other_process(pid: int) -> bool:
    """Whether another process of this machine, alive, has a number."""
    if pid == os.getpid():
        # A container numbers its processes from 1, so that of a killed one comes again.
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (ProcessLookupError, OverflowError):
        return False
    return True
