"""LayerNorm as Triton kernels, for GPUs, with gradients that are summed in a fixed order.

R rows of C channels, padded to a power of two; B rows are a program's tile. Sums are in float32
whatever the dtype. For the backward pass 8 bytes per row are kept beside the input.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a tile, its warps, and the programs that sum the gradients of weight and bias: two
# for each multiprocessor of a large GPU.
_TILE = 2048
_WARPS = 4
_PROGRAMS = 264


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype) -> Tensor:
    """Normalise each row, then scale and move its channels.

    Args:
        x: `(..., C)`.
        weight: factors of the channels, `(C,)`.
        bias: added to the channels, `(C,)`.
        eps: added to the variance.
        dtype: dtype of the result.
    """
    out: Tensor = _LayerNorm.apply(x, weight, bias, eps, dtype)
    return out


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, dtype: torch.dtype
    ) -> Tensor:
        x = x.contiguous()
        channels = x.shape[-1]
        rows = x.numel() // channels
        out = torch.empty_like(x, dtype=dtype)
        mean, rstd = x.new_empty((2, rows), dtype=torch.float32)
        options = _options(channels)
        programs = (triton.cdiv(rows, options["BLOCK"]),)
        with torch.cuda.device_of(x):
            _forward[programs](x, weight, bias, out, mean, rstd, rows, eps, **options)
        ctx.save_for_backward(x, weight, mean, rstd)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, rstd = ctx.saved_tensors
        channels, rows = x.shape[-1], mean.numel()
        dx = torch.empty_like(x)
        options = _options(channels)
        programs = min(_PROGRAMS, triton.cdiv(rows, options["BLOCK"]))
        sums = x.new_empty((programs, 2, channels), dtype=torch.float32)
        with torch.cuda.device_of(x):
            _backward[(programs,)](
                x, weight, mean, rstd, dout.contiguous(), dx, sums, rows, **options
            )
        dweight, dbias = sums.sum(0).to(weight.dtype)
        return dx, dweight, dbias, None, None


def _options(channels: int) -> dict[str, int]:
    padded = triton.next_power_of_2(channels)
    return {
        "CHANNELS": channels,
        "PADDED": padded,
        "BLOCK": max(1, _TILE // padded),
        "num_warps": _WARPS,
    }


# As a constant, the number of rows would make Triton compile a kernel for each number.
@triton.jit(do_not_specialize=["rows"])
def _forward(
    x,
    weight,
    bias,
    out,
    mean,
    rstd,
    rows,
    eps,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, PADDED)
    wanted = lane < CHANNELS
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = (row < rows)[:, None] & wanted[None, :]
    at = row.to(tl.int64)[:, None] * CHANNELS + lane[None, :]
    value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
    middle = tl.sum(value, axis=1) / CHANNELS
    apart = tl.where(there, value - middle[:, None], 0.0)
    scale = 1.0 / tl.sqrt(tl.sum(apart * apart, axis=1) / CHANNELS + eps)
    factor = tl.load(weight + lane, mask=wanted, other=0.0).to(tl.float32)
    added = tl.load(bias + lane, mask=wanted, other=0.0).to(tl.float32)
    result = apart * scale[:, None] * factor[None, :] + added[None, :]
    tl.store(out + at, result.to(out.dtype.element_ty), mask=there)
    tl.store(mean + row, middle, mask=row < rows)
    tl.store(rstd + row, scale, mask=row < rows)


@triton.jit(do_not_specialize=["rows"])
def _backward(
    x,
    weight,
    mean,
    rstd,
    dout,
    dx,
    sums,
    rows,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lane = tl.arange(0, PADDED)
    wanted = lane < CHANNELS
    factor = tl.load(weight + lane, mask=wanted, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK, PADDED), tl.float32)
    dbias = tl.zeros((BLOCK, PADDED), tl.float32)
    for first in range(tl.program_id(0) * BLOCK, rows, tl.num_programs(0) * BLOCK):
        row = first + tl.arange(0, BLOCK)
        there = (row < rows)[:, None] & wanted[None, :]
        at = row.to(tl.int64)[:, None] * CHANNELS + lane[None, :]
        middle = tl.load(mean + row, mask=row < rows, other=0.0)
        scale = tl.load(rstd + row, mask=row < rows, other=0.0)
        value = tl.load(x + at, mask=there, other=0.0).to(tl.float32)
        dresult = tl.load(dout + at, mask=there, other=0.0).to(tl.float32)
        normal = tl.where(there, (value - middle[:, None]) * scale[:, None], 0.0)
        dnormal = dresult * factor[None, :]
        along = tl.sum(dnormal * normal, axis=1) / CHANNELS
        common = tl.sum(dnormal, axis=1) / CHANNELS
        dvalue = (dnormal - normal * along[:, None] - common[:, None]) * scale[:, None]
        tl.store(dx + at, dvalue.to(dx.dtype.element_ty), mask=there)
        dweight += dresult * normal
        dbias += dresult
    here = sums + tl.program_id(0) * (2 * CHANNELS) + lane
    tl.store(here, tl.sum(dweight, axis=0), mask=wanted)
    tl.store(here + CHANNELS, tl.sum(dbias, axis=0), mask=wanted)
