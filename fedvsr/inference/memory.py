"""How much memory there is, and how much of it a computation takes."""

from __future__ import annotations

import ctypes
import re
import resource
import threading
from pathlib import Path
from typing import Protocol

import torch

from fedvsr.errors import UserError

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_CGROUPS = Path("/sys/fs/cgroup")
_PAGE = resource.getpagesize()
_SAMPLE_S = 0.002


def parse_bytes(text: str) -> int:
    """`8GiB`, `500 MB` or a number of bytes.

    Raises:
        UserError: it is none of these.
    """
    match = re.fullmatch(r"([0-9.]+) *([kmgt]i?)?b?", text.strip().lower())
    try:
        assert match is not None
        return int(float(match[1]) * (_UNITS | _BINARY)[match[2] or ""])
    except (AssertionError, ValueError):
        raise UserError(f"--memory {text!r} is not a size; write e.g. 8GiB or 500MB") from None


def show_bytes(num_bytes: float) -> str:
    """A size for people, in MiB or GiB."""
    gib = num_bytes / 2**30
    return f"{gib:.1f} GiB" if gib >= 1 else f"{num_bytes / 2**20:.0f} MiB"


def available_bytes() -> int:
    """Host memory that this process may still take: the system's, or less if its cgroup says so."""
    rooms = [_meminfo("MemAvailable")]
    for group in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = group.split(":", 2)
        if controllers in {"", "memory"}:
            rooms += _cgroup_rooms(controllers, path)
    return max(0, min(rooms))


def used_bytes() -> int:
    """Host memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Meter(Protocol):
    """The most memory held since it was last reset, on the device that computes."""

    def peak(self) -> int:
        """In bytes."""

    def reset(self) -> None:
        """Begin anew; what is freed goes back to the system first."""


class CudaMeter:
    """Of a GPU: what PyTorch's tensors take."""

    def peak(self) -> int:
        """See `Meter`."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """See `Meter`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class HostMeter:
    """Of this process: its resident memory, sampled by a thread until `close`.

    PyTorch releases the interpreter's lock while it computes, so samples come through. The system's
    own high-water mark is exact, and is taken where it has risen.
    """

    def __init__(self) -> None:
        self._closed = threading.Event()
        self._sampled = self._mark = 0
        self.reset()
        threading.Thread(target=self._sample, daemon=True).start()

    def peak(self) -> int:
        """See `Meter`."""
        self._sampled = max(self._sampled, used_bytes())
        mark = _high_water()
        return mark if mark > self._mark else self._sampled

    def reset(self) -> None:
        """See `Meter`."""
        release()
        self._sampled, self._mark = used_bytes(), _high_water()

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _sample(self) -> None:
        while not self._closed.wait(_SAMPLE_S):
            self._sampled = max(self._sampled, used_bytes())


def release() -> None:
    """Give what is freed back to the system, where its C library can."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _meminfo(name: str) -> int:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith(name))
    return int(line.split()[1]) * 1024


def _cgroup_rooms(controllers: str, path: str) -> list[int]:
    """What a memory cgroup and those above it leave; a container sees its own as the root."""
    version = "memory.max", "memory.current"
    root = _CGROUPS
    if controllers:
        version = "memory.limit_in_bytes", "memory.usage_in_bytes"
        root /= "memory"
    inside = Path(path.lstrip("/"))
    rooms = list[int]()
    for folder in (root / inside, *(root / parent for parent in inside.parents)):
        try:
            limit, used = ((folder / name).read_text().strip() for name in version)
        except OSError:
            continue
        if limit != "max":
            rooms.append(int(limit) - int(used))
    return rooms
