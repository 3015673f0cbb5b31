"""Freed memory is kept for the next tensors, and returned when asked."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

# Takes and frees three blocks of 40 MiB ten times, in a thread if asked; prints the page faults of
# all but the first time, and the resident bytes that `return_freed` gave back.
SCRIPT = """
import ctypes, resource, sys, threading
from fedvsr.heap import keep_freed, return_freed

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
SIZE = 40 * 2**20

def held():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def use():
    blocks = [ctypes.c_void_p(libc.malloc(ctypes.c_size_t(SIZE))) for _ in range(3)]
    for block in blocks:
        ctypes.memset(block, 1, SIZE)
    for block in blocks:
        libc.free(block)

def measure():
    use()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(9):
        use()
    faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
    before = held()
    return_freed()
    print(faults, before - held())

if "keep" in sys.argv:
    keep_freed()
if "thread" in sys.argv:
    thread = threading.Thread(target=measure)
    thread.start()
    thread.join()
else:
    measure()
"""
PAGES = 3 * 40 * 2**20 // os.sysconf("SC_PAGESIZE")


def measured(*arguments: str, **variables: str) -> tuple[int, int]:
    command = [sys.executable, "-c", SCRIPT, *arguments]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_")}
    out = subprocess.run(
        command, env=environment | variables, capture_output=True, text=True, timeout=60, check=True
    ).stdout
    faults, returned = map(int, out.split())
    return faults, returned


pytestmark = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")


@pytest.mark.parametrize("where", ["main", "thread"])
def test_freed_memory_is_used_again(where: str) -> None:
    assert measured(where)[0] > 8 * PAGES, "if not, this test measures nothing"
    faults, returned = measured(where, "keep")
    assert faults < PAGES // 10
    assert returned > 100 * 2**20


def test_what_a_user_sets_is_left() -> None:
    assert measured("main", "keep", MALLOC_MMAP_MAX_="65536")[0] > 8 * PAGES
