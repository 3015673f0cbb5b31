"""Fixes torch's own random draws and threads for the duration of a block."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def scoped_torch(seed: int, num_threads: int) -> Iterator[None]:
    """Fix torch's own draws (dropout, initial weights) and threads inside; restore both after."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
