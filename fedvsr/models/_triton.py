"""Whether the networks' Triton kernels serve a tensor."""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Callable
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

_Function = TypeVar("_Function", bound=Callable[..., object])


def fused(x: Tensor) -> bool:
    """Whether operations on `x` have Triton kernels: it lies on a GPU that Triton supports."""
    return x.is_cuda and triton_serves(x.device)


def constant_in_graphs(function: _Function) -> _Function:
    """Mark a function whose result a compiled graph may hold as a constant.

    `torch.compiler.assume_constant_result` sets the same attribute, but imports `torch._dynamo` for
    that: a CPU second or more in every process that builds a network, compiled or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant_in_graphs
@lru_cache(maxsize=16)
def triton_serves(device: torch.device) -> bool:
    """Whether Triton is installed and can compile for a GPU.

    Its launcher also needs a C compiler and Python's headers, which some machines lack.
    """
    headers = Path(sysconfig.get_path("include", "posix_prefix"), "Python.h")
    compiler = os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")
    ready = find_spec("triton") is not None and compiler is not None and headers.exists()
    return ready and torch.cuda.get_device_capability(device) >= (7, 0)
