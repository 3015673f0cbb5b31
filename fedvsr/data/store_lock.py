"""The lock of a clip store that is being made."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fedvsr.errors import UserError

# What file systems without locks answer.
_NO_LOCKS = {errno.ENOLCK, errno.ENOTSUP}
# Seconds without a change after which a process that makes a store counts as stopped.
_SILENT_S = 600.0


@contextmanager
def locked(out: Path, folder: Path, wait: bool) -> Iterator[None]:
    """Hold the lock of a store that is being made; the system drops it if the process dies.

    Args:
        out: the store.
        folder: where its clips gather.
        wait: wait for another process that makes this store, as long as it writes anything.

    Raises:
        UserError: another process holds the lock.
    """
    lock = FileLock(out.with_name(f".{out.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        problem = f"another process is preparing {out}"
        if not wait:
            raise UserError(f"{problem}; wait for it") from None
        if not _acquire_later(lock, folder):
            problem += f" and has written nothing for {_SILENT_S:g} s"
            raise UserError(f"{problem}; is it stopped? end it, or wait for it") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    try:
        yield
    finally:
        if lock.is_locked:
            # Deleted while it is held. filelock (from 3.24) notices if it has locked a deleted file
            # and tries again, so two processes never hold two locks of one store.
            Path(lock.lock_file).unlink(missing_ok=True)
            lock.release()


def _acquire_later(lock: FileLock, folder: Path) -> bool:
    """Wait for a lock for as long as the process that holds it writes to a folder."""
    while True:
        before = _newest(folder)
        try:
            lock.acquire(timeout=_SILENT_S)
        except Timeout:
            if _newest(folder) == before:
                return False
        else:
            return True


def _newest(folder: Path) -> int:
    """When anything in a folder last changed, in nanoseconds."""
    newest = 0
    for path in (folder, *folder.rglob("*")):
        with suppress(FileNotFoundError):
            newest = max(newest, path.stat().st_mtime_ns)
    return newest
