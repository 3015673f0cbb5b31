"""Memory that PyTorch takes on the CPU: kept from one tensor to the next, returned after a task.

The C library (glibc) returns a large block to the system once it is freed. The next tensor then
gets new pages of 4 KiB, which the system fills with zeros. Processes that train or score keep what
is freed until the task ends (docs/design/0027-freed-memory.md).
"""

from __future__ import annotations

import ctypes
import os

# Parameters of mallopt (malloc.h), and the variables by which a user sets them.
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
_VARIABLES = (
    "MALLOC_TRIM_THRESHOLD_",
    "MALLOC_TOP_PAD_",
    "MALLOC_MMAP_MAX_",
    "MALLOC_MMAP_THRESHOLD_",
    "GLIBC_TUNABLES",
)
_MOST_INT = 2**31 - 1
# The size of the pieces of which the heap of a thread consists; with less, free ones are returned.
_PIECE = 64 * 2**20
# Large enough for glibc to look at the end of the heap when it is freed.
_BLOCK = 2**17
_keeps = False


def keep_freed() -> None:
    """Let this process keep freed memory for its next tensors, until `return_freed`.

    Without effect if the C library has no `mallopt`, or if the user has set its variables. In a
    thread, blocks of more than 64 MiB are returned to the system all the same.
    """
    global _keeps
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and not any(name in os.environ for name in _VARIABLES):
        _keeps = True
        libc.mallopt(_MMAP_MAX, 0)
        _keep(libc, _MOST_INT, _PIECE)


def return_freed() -> None:
    """Return this thread's freed memory to the system, if the C library can: others may need it."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        return
    if _keeps:
        # `malloc_trim` leaves the end of a thread's heap, which goes when a block is freed there.
        _keep(libc, 0, 0)
        libc.malloc.restype = ctypes.c_void_p
        libc.free(ctypes.c_void_p(libc.malloc(ctypes.c_size_t(_BLOCK))))
    libc.malloc_trim(0)
    if _keeps:
        _keep(libc, _MOST_INT, _PIECE)


def _keep(libc: ctypes.CDLL, trim_threshold: int, top_pad: int) -> None:
    libc.mallopt(_TRIM_THRESHOLD, trim_threshold)
    libc.mallopt(_TOP_PAD, top_pad)
