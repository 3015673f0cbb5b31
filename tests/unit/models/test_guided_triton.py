"""The Triton kernels of RVRT's guided deformable attention against the PyTorch path.

Without a GPU they run in Triton's interpreter, in a separate process, because it must be chosen
before Triton is imported. `test_compiles` finds what only a compiler refuses.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from fedvsr.models import _triton
from fedvsr.models.rvrt import network
from tests.unit.models import test_rvrt

triton = pytest.importorskip("triton", reason="Triton is not installed")

Attention = Callable[[Tensor, Tensor, Tensor, Tensor, int, tuple[int, int]], Tensor]
BOUNDS = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}
NAMES = ("out", "q", "k", "v", "offset")


@dataclass(frozen=True)
class Case:
    """A call of `guided_attention`.

    Attributes:
        shape: N, C, H, W.
        heads: attention heads.
        groups: deformable groups, half of them for keys.
        taps: rows and columns of the window of places per frame.
        dtype: dtype of queries, keys and values.
        positions: "anywhere", with a third outside; or "pixels": whole pixels, some outside. The
            sides of such images are powers of two plus one, for which `grid_sample`, too, computes
            whole positions without rounding.
        strided: whether no input is contiguous.
        tile: elements per program.
    """

    shape: tuple[int, int, int, int] = (2, 24, 5, 7)
    heads: int = 4
    groups: int = 4
    taps: tuple[int, int] = (1, 1)
    dtype: torch.dtype = torch.float32
    positions: str = "anywhere"
    strided: bool = False
    tile: int = 1024

    def inputs(self) -> list[Tensor]:
        """Queries, keys, values, offsets."""
        draw = torch.Generator().manual_seed(5)
        count, _, height, width = self.shape
        shape = (count, 2, self.groups, math.prod(self.taps), 2, height, width)
        size = torch.tensor([height, width])[:, None, None]
        pixel = torch.stack(torch.meshgrid(*map(torch.arange, (height, width)), indexing="ij"))
        if self.positions == "pixels":
            place = torch.randint(0, 10**6, shape, generator=draw) % (size + 4) - 2.0
        else:
            place = (1.25 * torch.rand(shape, generator=draw) - 0.125) * (size - 1)
        offset = place - pixel
        inputs = [torch.randn(self.shape, generator=draw).to(self.dtype) for _ in range(3)]
        inputs.append(offset)
        if self.strided:
            inputs = [x.repeat_interleave(2, dim=-1)[..., ::2] for x in inputs]
        return inputs


CASES = {
    "two heads a group": Case(taps=(1, 2)),
    "one head a group": Case(groups=8),
    "one head": Case(shape=(2, 20, 5, 7), heads=1, groups=2),
    "three groups a head": Case(heads=2, groups=12),
    "heads across groups": Case(groups=12),
    "channels one by one": Case(shape=(2, 2, 5, 7), heads=2, groups=4),
    "two pairs": Case(shape=(4, 12, 3, 5), heads=2, groups=2),
    "pixels and borders": Case(
        shape=(2, 12, 5, 9), heads=2, groups=2, positions="pixels", taps=(3, 1)
    ),
    "many programs": Case(shape=(2, 12, 5, 7), heads=2, groups=2, tile=256),
    "strided": Case(shape=(2, 12, 3, 5), heads=2, groups=2, strided=True),
    "bfloat16": Case(dtype=torch.bfloat16),
    "float16": Case(shape=(2, 12, 5, 7), heads=2, groups=2, dtype=torch.float16),
}


def results(attention: Attention, case: Case, device: str = "cpu") -> list[Tensor]:
    """The output and the gradients of all inputs, in the order of `NAMES`."""
    inputs = [x.to(device).requires_grad_() for x in case.inputs()]
    out = attention(*inputs, case.heads, case.taps)
    assert out.dtype == case.dtype
    weight = torch.randn(case.shape, generator=torch.Generator().manual_seed(6)).to(device)
    gradients = torch.autograd.grad((out * weight).sum(), inputs)
    assert all(g.dtype == x.dtype for g, x in zip(gradients, inputs, strict=True))
    return [out.detach(), *gradients]


def errors(want: list[Tensor], got: list[Tensor]) -> dict[str, float]:
    """Relative errors (L2) by name."""
    return {
        name: ((g.double().cpu() - w.double()).norm() / w.double().norm()).item()
        for name, w, g in zip(NAMES, want, got, strict=True)
    }


def fused() -> Attention:
    from fedvsr.models.rvrt import _guided_triton

    return _guided_triton.guided_attention


def tiles(elements: int) -> Any:
    from fedvsr.models.rvrt import _guided_triton

    return mock.patch.multiple(_guided_triton, _FORWARD_TILE=elements, _BACKWARD_TILE=elements)


def compare(case: Case) -> dict[str, float]:
    with tiles(case.tile):
        return errors(results(network.guided_attention, case), results(fused(), case))


def compare_used_twice(case: Case) -> dict[str, float]:
    def twice(attention: Attention) -> Attention:
        def call(
            q: Tensor, k: Tensor, v: Tensor, offset: Tensor, heads: int, taps: tuple[int, int]
        ) -> Tensor:
            # The second use reads the output of the first, and half of the offsets.
            first = attention(q, k, v, offset, heads, taps)
            return first + attention(first, v, k, 0.5 * offset, heads, taps)

        return call

    return errors(results(twice(network.guided_attention), case), results(twice(fused()), case))


def check_golden() -> None:
    with mock.patch.object(network, "guided_attention", fused()), tiles(8192):
        test_rvrt.test_guided_deformable_attention_golden()


@pytest.fixture(scope="module")
def interpreted() -> Iterator[Callable[..., Any]]:
    """Calls a function in a process in which Triton interprets."""
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("TRITON_INTERPRET", "1")
            pool.submit(os.getpid).result()  # starts the process with this environment
        yield lambda function, *args: pool.submit(function, *args).result()


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in CASES.items()])
def test_equals_the_pytorch_path(interpreted, case):
    differences = interpreted(compare, case)
    # Results have the inputs' precision; the interpreter truncates, but a GPU rounds.
    assert max(differences.values()) < BOUNDS[case.dtype], differences


def test_can_be_used_twice(interpreted):
    differences = interpreted(compare_used_twice, Case(shape=(2, 12, 3, 5), heads=2, groups=2))
    assert max(differences.values()) < 1e-6, differences


def test_golden(interpreted):
    interpreted(check_golden)


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        *(pytest.param(case, id=name) for name, case in CASES.items()),
        pytest.param(Case((4, 288, 33, 35), heads=12, groups=12, taps=(3, 3)), id="paper"),
    ],
)
def test_equals_the_pytorch_path_on_a_gpu(case):
    assert _triton.triton_serves(torch.device("cuda"))
    want = results(network.guided_attention, case)
    differences = errors(want, results(network.guided_attention, case, "cuda"))
    assert max(differences.values()) < max(1e-5, BOUNDS[case.dtype]), differences


def test_a_gpu_uses_the_kernels(monkeypatch):
    from fedvsr.models.rvrt import _guided_triton

    monkeypatch.setattr(_triton, "triton_serves", lambda device: device == "cuda:1")
    monkeypatch.setattr(_guided_triton, "guided_attention", lambda *args: args)
    q = mock.Mock(is_cuda=True, device="cuda:1")
    assert network.guided_attention(q, "k", "v", "offset", 4, (3, 3)) == (
        q,
        "k",
        "v",
        "offset",
        4,
        (3, 3),
    )


def test_a_cpu_does_not_import_the_kernels(monkeypatch):
    monkeypatch.setitem(sys.modules, "fedvsr.models.rvrt._guided_triton", None)
    monkeypatch.delattr("fedvsr.models.rvrt._guided_triton", raising=False)
    network.guided_attention(*Case().inputs(), 4, (1, 1))
    with pytest.raises(ImportError):
        fused()


@pytest.mark.parametrize(
    ("missing", "serves"),
    [(None, True), ("triton", False), ("gcc", False), ("headers", False), ("capability", False)],
)
def test_triton_needs_a_compiler_headers_and_a_recent_gpu(missing, serves, tmp_path, monkeypatch):
    if missing != "headers":
        (tmp_path / "Python.h").touch()
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(_triton, "find_spec", lambda name: None if missing == name else "found")
    monkeypatch.setattr("shutil.which", lambda name: None if missing == "gcc" else name)
    monkeypatch.setattr("sysconfig.get_path", lambda *names: str(tmp_path))
    capability = (6, 1) if missing == "capability" else (7, 5)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    _triton.triton_serves.cache_clear()
    assert _triton.triton_serves(torch.device("cuda")) == serves
    _triton.triton_serves.cache_clear()


# The paper's heads and groups; heads across groups, whose channels have their own positions.
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") == "1", reason="nothing is compiled")
@pytest.mark.parametrize(("dtype", "capability", "heads"), [("bf16", 90, 12), ("fp32", 80, 4)])
def test_compiles(dtype, capability, heads, tmp_path, monkeypatch):
    pytest.importorskip("triton.backends.nvidia.compiler", reason="Triton for other devices")
    from triton.backends.compiler import GPUTarget

    from fedvsr.models.rvrt import _guided_triton as module

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    q = torch.empty(2, 64, 64, 288, device="meta")
    offset = torch.empty(2, 2, 12, 9, 2, 64, 64, device="meta")
    pointers = dict.fromkeys(("q", "k", "v", "out", "dout", "dq"), f"*{dtype}")
    for name in ("offset", "log_sum", "dk", "dv", "doffset"):
        pointers[name] = "*fp32"
    for kernel, tile in (
        (module._forward, module._FORWARD_TILE),
        (module._backward, module._BACKWARD_TILE),
    ):
        _, _, constants = module._launch(q, offset, heads, 3, tile)
        options = {name: constants.pop(name) for name in ("num_warps", "enable_fp_fusion")}
        types = {**pointers, "height": "i32", "width": "i32", "scale": "fp32"}
        types |= dict.fromkeys(constants, "constexpr")
        signature = {name: types[name] for name in kernel.arg_names}
        # A tensor's memory begins at a multiple of 16 bytes.
        aligned = {
            (i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if name in pointers
        }
        source = triton.compiler.ASTSource(kernel, signature, constants, aligned)
        compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
        # Channels are read several at once.
        assert "ld.global.v" in compiled.asm["ptx"]
