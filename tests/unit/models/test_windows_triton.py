"""The Triton kernels of window attention against the PyTorch path.

Without a GPU they run in Triton's interpreter, in a separate process, because it must be chosen
before Triton is imported. `test_compiles` finds what only a compiler refuses.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn

from fedvsr.models import _attention, _triton, _windows
from fedvsr.models.spec import Window
from tests.unit.models.fused import on_the_gpu_path

triton = pytest.importorskip("triton", reason="Triton is not installed")

# Bytes that exact float32 products may spill: three registers, outside of the loop.
SPILLED = 16
BOUNDS = {torch.float32: 3e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True)
class Case:
    """A layer and its input.

    Attributes:
        kind: "swin", a `SwinLayer`'s attention; "self" or "mutual", that of VRT.
        window: frames, rows, columns.
        size: G, D, H, W.
        channels: C.
        heads: attention heads.
        shifted: whether windows move by half their size.
    """

    kind: str
    window: Window
    size: tuple[int, int, int, int]
    channels: int = 12
    heads: int = 2
    shifted: bool = False

    def layer(self) -> Callable[[Tensor], Tensor]:
        """The layer's attention, with its own norm, of fixed weights."""
        torch.manual_seed(3)
        if self.kind == "swin":
            layer = _windows.SwinLayer(self.channels, self.window, self.heads, 1.0, self.shifted)
            nn.init.normal_(layer.attn.relative_position_bias_table)
            return _Attend(layer, layer._attend)
        mutual = self.kind == "mutual"
        attn = _attention.WindowAttention(self.channels, self.window, self.heads, mutual)
        nn.init.normal_(attn.relative_position_bias_table)
        shift = tuple(side // 2 for side in self.window) if self.shifted else (0, 0, 0)

        def attend(x: Tensor) -> Tensor:
            plan = _attention.window_plan(tuple(x.shape[1:4]), self.window, shift, x.device)
            return plan.attend(attn, x)

        return _Attend(attn, attend)


class _Attend(nn.Module):
    def __init__(self, layer: nn.Module, attend: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.attend = layer, attend

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x)


CASES = {
    "one window": Case("swin", (1, 4, 4), (1, 1, 4, 4)),
    "shifted": Case("swin", (2, 4, 4), (2, 2, 8, 8), shifted=True),
    "padded": Case("swin", (2, 4, 4), (1, 2, 6, 9), shifted=True),
    "no power of two": Case("swin", (3, 5, 3), (2, 3, 10, 6), shifted=True),
    "rvrt": Case("swin", (2, 8, 8), (1, 2, 8, 16), 24, 1, shifted=True),
    "iart": Case("swin", (3, 8, 8), (1, 3, 8, 16), 20, 1, shifted=True),
    "shift in time": Case("self", (4, 4, 4), (1, 8, 4, 8), shifted=True),
    "padded in time": Case("self", (4, 4, 4), (1, 6, 8, 5), shifted=True),
    "shortened in time": Case("self", (4, 4, 4), (1, 3, 8, 8), shifted=True),
    "vrt": Case("self", (6, 8, 8), (1, 7, 8, 8), 20, 1, shifted=True),
    "mutual": Case("mutual", (2, 4, 4), (2, 2, 4, 8)),
    "mutual, shifted": Case("mutual", (2, 4, 4), (1, 4, 8, 8), shifted=True),
    "mutual, padded": Case("mutual", (2, 4, 4), (1, 3, 6, 7), heads=1, shifted=True),
    "mutual of vrt": Case("mutual", (2, 8, 8), (1, 4, 8, 16), 20, 1, shifted=True),
}

# The interpreter takes seconds for these; others test the same.
SLOW = ("no power of two", "rvrt", "vrt", "shortened in time", "mutual", "mutual of vrt")


def results(case: Case, dtype: torch.dtype, device: str = "cpu") -> dict[str, Tensor]:
    """The output, and the gradients of the input and of all parameters."""
    layer = case.layer().to(device)
    draw = torch.Generator().manual_seed(5)
    x = torch.randn(*case.size, case.channels, generator=draw).to(device).requires_grad_()
    weight = torch.randn(*case.size, case.channels, generator=draw).to(device)
    with torch.autocast(x.device.type, dtype, enabled=dtype != torch.float32):
        out = layer(x)
    (out.float() * weight).sum().backward()
    gradients = {n: p.grad for n, p in layer.named_parameters() if p.grad is not None}
    return {"out": out.detach(), "x": x.grad, **gradients}


def errors(want: dict[str, Tensor], got: dict[str, Tensor]) -> dict[str, float]:
    """Relative errors (L2) by name."""
    assert want.keys() == got.keys()
    return {
        name: ((got[name].double().cpu() - w.double().cpu()).norm() / w.double().norm()).item()
        for name, w in want.items()
    }


def compare(case: Case, dtype: torch.dtype) -> dict[str, float]:
    want = results(case, dtype)
    with on_the_gpu_path():
        return errors(want, results(case, dtype))


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process in which Triton interprets."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # starts the process with this environment
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, id=name, marks=[pytest.mark.full] * (name in SLOW))
        for name, case in CASES.items()
    ],
)
def test_equals_the_pytorch_path(interpreted, case):
    differences = interpreted(compare, case, torch.float32)
    assert max(differences.values()) < BOUNDS[torch.float32], differences


def test_equals_the_pytorch_path_in_half_precision(interpreted):
    # The interpreter has no matrix products in bfloat16.
    differences = interpreted(compare, CASES["shifted"], torch.float16)
    assert max(differences.values()) < BOUNDS[torch.float16], differences


def compare_in_chunks() -> tuple[int, int, dict[str, float]]:
    from fedvsr.models import _windows_triton as module

    case = Case("swin", (1, 4, 4), (3, 1, 8, 8))
    qkv, bias = torch.empty(*case.size, 3 * case.channels), torch.empty(case.heads, 49)
    plan = module._Plan(qkv, bias, case.heads, case.window, (0, 0, 0))
    many = plan.bias_chunks()
    with mock.patch.object(module, "_BIAS_NUMBERS", 5 * case.heads * 16**2):
        return many, plan.bias_chunks(), compare(case, torch.float32)


def test_sums_the_gradient_of_the_bias_in_chunks(interpreted):
    many, few, differences = interpreted(compare_in_chunks)
    assert (many, few) == (12, 5)
    assert max(differences.values()) < BOUNDS[torch.float32], differences


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        pytest.param(Case("swin", (2, 8, 8), (1, 2, 64, 64), 144, 6, shifted=True), id="paper"),
        pytest.param(Case("self", (8, 8, 8), (1, 16, 64, 64), 120, 6, shifted=True), id="deep"),
        pytest.param(Case("mutual", (2, 8, 8), (1, 16, 64, 64), 120, 6, shifted=True), id="pairs"),
    ],
)
def test_equals_the_pytorch_path_on_a_gpu(case, dtype):
    with mock.patch.object(_triton, "triton_serves", return_value=False):
        want = results(case, dtype, "cuda")
    assert _triton.triton_serves(torch.device("cuda"))
    got = results(case, dtype, "cuda")
    differences = errors(want, got)
    assert max(differences.values()) < max(1e-5, BOUNDS[dtype]), differences
    again = results(case, dtype, "cuda")
    assert [name for name, value in got.items() if not torch.equal(value, again[name])] == []


def test_a_cpu_does_not_import_the_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedvsr.models._windows_triton", None)
    results(CASES["mutual"], torch.float32)
    with pytest.raises(ImportError), on_the_gpu_path():
        results(CASES["mutual"], torch.float32)


# The windows of RVRT and VRT. What spills registers to memory has a stack.
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
@pytest.mark.parametrize(
    ("dtype", "capability", "tf32", "depth", "window", "shift"),
    [
        ("bf16", 90, False, 24, (2, 8, 8), (0, 4, 4)),
        ("fp32", 80, False, 20, (6, 8, 8), (3, 4, 4)),
        pytest.param("bf16", 80, False, 30, (6, 8, 8), (3, 4, 4), marks=pytest.mark.full),
        pytest.param("fp32", 80, True, 24, (2, 8, 8), (0, 4, 4), marks=pytest.mark.full),
        pytest.param("fp32", 90, True, 20, (8, 8, 8), (0, 0, 0), marks=pytest.mark.full),
    ],
)
def test_compiles(dtype, capability, tf32, depth, window, shift, tmp_path, monkeypatch):
    pytest.importorskip("triton.backends.nvidia.compiler", reason="Triton for other devices")
    pytest.importorskip("triton.knobs", reason="Triton before 3.4 does not say where cuobjdump is")
    from triton.backends.compiler import GPUTarget

    from fedvsr.models import _windows_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(module, "_exact_products", lambda: not tf32)
    torch_dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[dtype]
    qkv = torch.empty(1, 2 * window[0], 64, 64, 18 * depth, device="meta", dtype=torch_dtype)
    plan = module._Plan(qkv, torch.empty(6, (2 * window[0] - 1) * 15**2), 6, window, shift)
    pointers = dict.fromkeys(("qkv", "dout", "out", "dqkv"), f"*{dtype}")
    pointers |= dict.fromkeys(("bias", "log_sum", "delta", "partial", "dtable"), "*fp32")
    sizes = ("frames", "height", "width", "dout_stride", "windows", "chunks")
    for kernel, settings in (
        (module._forward, plan.options),
        (module._backward_queries, plan.options),
        (module._backward_keys, plan.options),
        (module._backward_bias, plan.options),
        (module._sum_bias, plan.table_options()),
    ):
        options = {name: settings[name] for name in settings if name.startswith("num_")}
        constants = {name: value for name, value in settings.items() if name in kernel.arg_names}
        types = {**pointers, **dict.fromkeys(sizes, "i32"), "scale": "fp32"}
        types |= dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        # A tensor's memory begins at a multiple of 16 bytes.
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in pointers
        }
        source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        assert compiled.metadata.shared <= 99 * 1024
        assert stack_bytes(compiled.asm["cubin"], tmp_path) <= SPILLED, kernel.__name__


def stack_bytes(binary: bytes, folder: Path) -> int:
    """Bytes of stack that a compiled kernel uses."""
    path = folder / "kernel.cubin"
    path.write_bytes(binary)
    command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", str(path)]
    usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found, usage
    return int(found[2])
