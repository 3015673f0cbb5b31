"""Fixes what torch's results depend on besides its inputs, for the duration of a block."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

# cuBLAS reads it when it starts; without it, torch refuses deterministic products.
_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@contextmanager
def scoped_torch(seed: int, num_threads: int, fixed_order: bool = False) -> Iterator[None]:
    """Fix torch's own draws (dropout, initial weights) and threads inside; restore them after.

    Args:
        seed: of the draws.
        num_threads: CPU threads.
        fixed_order: on GPUs, sum in a fixed order, which is slower.
    """
    before = torch.get_num_threads()
    with torch.random.fork_rng(range(_num_gpus())), _ordered(fixed_order):
        _seed(seed)
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)


def _seed(seed: int) -> None:
    # Without a GPU, `torch.manual_seed` keeps each call, with a stack trace, for the day when one
    # appears: milliseconds and kilobytes in every task.
    if _num_gpus():
        torch.manual_seed(seed)
    else:
        torch.default_generator.manual_seed(seed)


@lru_cache(maxsize=1)
def _num_gpus() -> int:
    # Without a GPU, PyTorch looks for a driver at each call.
    return torch.cuda.device_count()


@contextmanager
def _ordered(fixed_order: bool) -> Iterator[None]:
    # On a CPU, the order is fixed by the number of threads.
    if not (fixed_order and torch.cuda.is_available()):
        yield
        return
    os.environ.setdefault(_WORKSPACE, ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)
