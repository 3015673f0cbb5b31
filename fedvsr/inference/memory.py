"""Memory that a computation takes, and how a limit on it is written."""

from __future__ import annotations

import re
import resource
import threading
from pathlib import Path
from typing import Protocol

import torch

from fedvsr.errors import UserError
from fedvsr.heap import return_freed

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
_BINARY = {"ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_PAGE = resource.getpagesize()
_SAMPLE_S = 0.002


def parse_bytes(text: str) -> int:
    """Read a size such as `8GiB`, `500 MB` or a plain number of bytes.

    Raises:
        UserError: the text is no size.
    """
    match = re.fullmatch(r"([0-9.]+) *([kmgt]i?)?b?", text.strip().lower())
    try:
        assert match is not None
        return int(float(match[1]) * (_UNITS | _BINARY)[match[2] or ""])
    except (AssertionError, ValueError):
        raise UserError(f"--memory {text!r} is not a size; write e.g. 8GiB or 500MB") from None


def used_bytes() -> int:
    """Host memory that this process holds."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * _PAGE


class Meter(Protocol):
    """Measures the most memory held since the last reset, on the device that computes."""

    def peak(self) -> int:
        """The most memory held, in bytes."""

    def reset(self) -> None:
        """Reset the peak after returning freed memory to the system."""


class CudaMeter:
    """Measures what PyTorch's tensors take on a GPU."""

    def peak(self) -> int:
        """See `Meter`."""
        return torch.cuda.max_memory_allocated()

    def reset(self) -> None:
        """See `Meter`."""
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class HostMeter:
    """Measures this process's resident memory; a thread samples it until `close`.

    PyTorch releases the interpreter's lock while it computes, so the thread gets to sample. The
    system's own high-water mark is exact, and is used if it has risen since the reset.
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
        return_freed()
        self._sampled, self._mark = used_bytes(), _high_water()

    def close(self) -> None:
        """Stop the thread."""
        self._closed.set()

    def _sample(self) -> None:
        while not self._closed.wait(_SAMPLE_S):
            self._sampled = max(self._sampled, used_bytes())


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
