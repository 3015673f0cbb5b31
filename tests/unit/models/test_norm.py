"""The Triton kernels of LayerNorm against PyTorch's; see `test_windows_triton` on how they run."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fedvsr.models import _norm

triton = pytest.importorskip("triton", reason="Triton is not installed")

# More rows than the programs of the backward pass take in one turn; channels of no power of two.
SHAPES = {
    "many rows": (3, 701, 5),
    "wide": (2, 3, 3, 144),
    "one row": (1, 16),
    "strided": (4, 6, 3),
}
BOUNDS = {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def results(name: str, fused: bool, device: str, dtype: torch.dtype) -> list[Tensor]:
    """The output, and the gradients of the input, the weight and the bias."""
    draw = torch.Generator().manual_seed(0)
    shape = SHAPES[name]
    x = (3 + 2 * torch.randn(shape, generator=draw)).to(device)
    weight = torch.randn(shape, generator=draw).to(device)
    if name == "strided":
        x, weight = x.transpose(0, 1), weight.transpose(0, 1)
    norm = _norm.LayerNorm(shape[-1]).to(device)
    with torch.no_grad():
        norm.weight.copy_(1 + 0.3 * torch.randn(shape[-1], generator=draw))
        norm.bias.copy_(torch.randn(shape[-1], generator=draw))
    x.requires_grad_()
    with (
        mock.patch.object(_norm, "fused", return_value=fused),
        torch.autocast(device, dtype, enabled=dtype != torch.float32),
    ):
        out = norm(x)
    if fused:
        assert out.dtype == dtype
    (out.float() * weight).sum().backward()
    return [out.detach(), x.grad, norm.weight.grad, norm.bias.grad]


def differences(name: str, device: str, dtype: torch.dtype) -> list[float]:
    want, got = (results(name, fused, device, dtype) for fused in (False, True))
    pairs = zip(want, got, strict=True)
    return [float((g.double() - w.double()).norm() / w.double().norm()) for w, g in pairs]


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process in which Triton interprets."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # starts the process with this environment
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.mark.parametrize("name", SHAPES)
def test_equals_pytorchs(interpreted: Callable[..., Any], name: str) -> None:
    found = interpreted(differences, name, "cpu", torch.float32)
    assert max(found) < BOUNDS[torch.float32], found


def test_the_result_has_the_dtype_of_autocast(interpreted: Callable[..., Any]) -> None:
    found = interpreted(differences, "wide", "cpu", torch.float16)
    assert max(found) < BOUNDS[torch.float16], found


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", SHAPES)
def test_equals_pytorchs_on_a_gpu(name: str, dtype: torch.dtype) -> None:
    found = differences(name, "cuda", dtype)
    assert max(found) < BOUNDS[dtype], found
    once, again = (results(name, True, "cuda", dtype) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(once, again, strict=True))
