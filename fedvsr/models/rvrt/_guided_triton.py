"""RVRT's guided deformable attention as two Triton kernels, for GPUs.

The results equal those of `network.guided_attention`, accumulated in float32 whatever the dtype of
the input. A program processes some pixels and the heads that share positions. It reads the keys and
values to which these positions point, and keeps them in registers: no sampled key or value is
written to memory.

Memory: for the backward pass, 4 bytes per pixel and head are kept beside the inputs. With the
output that is 1.2 KB per pixel and frame in the paper's network in float32, where the sampled
keys and values alone would take 41 KB. The backward pass allocates the four gradients, those of
keys and values in float32, and reads everything twice, once for the softmax. Inputs have channels
last; others are copied.

Gradients of keys, values and offsets are summed atomically, so on a GPU their last bits depend on
the order in which programs run, as those of `grid_sample` do.

In the kernels, D is the channels of a head, padded to a power of two; B is the rows of a program,
one for each of its pixels and heads, with the heads of a pixel adjacent.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a program's tile B x D, and its warps. A head's channels at a pixel are adjacent in
# memory: 8 threads read the paper's 24, padded to 32, 16 bytes each in float32. A thread has 8
# elements of every tile in the forward pass, which holds the query, the result and the pixels read
# ahead; it has 4 in the backward pass, which also holds gradients and addresses. Compiled for the
# paper's network, that takes 64 and 79 registers in bfloat16 on compute capability 9.0, 72 and 123
# on 8.6, and 75, 80, 87 and 138 in float32, none spilled: at least 16 warps, or 12 in the last
# case, share a multiprocessor and hide each other's waits.
_FORWARD_TILE = 1024
_BACKWARD_TILE = 512
_WARPS = 4


def guided_attention(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, heads: int, taps: tuple[int, int]
) -> Tensor:
    """Compute `network.guided_attention` by the kernels.

    Args:
        q: queries, `(N, C, H, W)`, pairs of frames folded.
        k: keys of the other pair, of the same shape.
        v: values of the other pair, of the same shape.
        offset: where to sample, `(N, 2, G, P, 2, H, W)`.
        heads: attention heads over the channels.
        taps: rows and columns of the window of P taps.

    Returns:
        `(N, C, H, W)`, of the dtype of `q`, channels last in memory.
    """
    last = (x.permute(0, 2, 3, 1).contiguous() for x in (q, k, v))
    out: Tensor = _Attention.apply(*last, offset.float().contiguous(), heads, taps[1])
    return out.permute(0, 3, 1, 2)


class _Attention(torch.autograd.Function):
    """Maps three `(N, H, W, C)` and float32 offsets, all contiguous, to `(N, H, W, C)`.

    It calls the operators below, which a compiled graph can hold; they have no gradients of their
    own.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_NHWC: Tensor,
        k_NHWC: Tensor,
        v_NHWC: Tensor,
        offset: Tensor,
        heads: int,
        columns: int,
    ) -> Tensor:
        out, log_sum = torch.ops.fedvsr.guided_attention(
            q_NHWC, k_NHWC, v_NHWC, offset, heads, columns
        )
        ctx.sizes = heads, columns
        ctx.save_for_backward(q_NHWC, k_NHWC, v_NHWC, offset, log_sum)
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_NHWC: Tensor) -> tuple[Tensor | None, ...]:
        gradients = torch.ops.fedvsr.guided_attention_backward(
            dout_NHWC, *ctx.saved_tensors, *ctx.sizes
        )
        return *gradients, None, None


torch.library.define(
    "fedvsr::guided_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor offset, int heads, int columns) -> (Tensor, Tensor)",
)
torch.library.define(
    "fedvsr::guided_attention_backward",
    "(Tensor dout, Tensor q, Tensor k, Tensor v, Tensor offset, Tensor log_sum, int heads, "
    "int columns) -> (Tensor, Tensor, Tensor, Tensor)",
)


@torch.library.register_fake("fedvsr::guided_attention")
def _forward_outputs(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, heads: int, columns: int
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of each softmax, by pixel and head."""
    return torch.empty_like(q), q.new_empty(*q.shape[:-1], heads, dtype=torch.float32)


@torch.library.register_fake("fedvsr::guided_attention_backward")
def _backward_outputs(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offset: Tensor,
    log_sum: Tensor,
    heads: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of queries, keys, values and offsets."""
    dq, dk, dv, doffset = (torch.empty_like(x) for x in (q, k, v, offset))
    return dq, dk, dv, doffset


@torch.library.impl("fedvsr::guided_attention", "default")
def _run_forward(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, heads: int, columns: int
) -> tuple[Tensor, Tensor]:
    out, log_sum = _forward_outputs(q, k, v, offset, heads, columns)
    sizes, programs, options = _launch(q, offset, heads, columns, _FORWARD_TILE)
    # Triton launches on the current device, not on that of the tensors.
    with torch.cuda.device_of(q):
        _forward[programs](q, k, v, offset, out, log_sum, *sizes, **options)
    return out, log_sum


@torch.library.impl("fedvsr::guided_attention_backward", "default")
def _run_backward(
    dout: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    offset: Tensor,
    log_sum: Tensor,
    heads: int,
    columns: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    dq, doffset = torch.empty_like(q), torch.zeros_like(offset)
    dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
    sizes, programs, options = _launch(q, offset, heads, columns, _BACKWARD_TILE)
    inputs = (q, k, v, offset, log_sum, dout.contiguous())
    with torch.cuda.device_of(q):
        _backward[programs](*inputs, dq, dk, dv, doffset, *sizes, **options)
    return dq, dk.to(k.dtype), dv.to(v.dtype), doffset


def _launch(
    q_NHWC: Tensor, offset: Tensor, heads: int, columns: int, tile: int
) -> tuple[tuple[int, int, float], tuple[int, int], dict[str, int]]:
    """Size and scale, numbers of programs, and compile-time constants of a kernel."""
    count, height, width, channels = q_NHWC.shape
    groups = offset.shape[2] // 2
    depth, shared = channels // heads, channels // groups
    across = shared % depth != 0
    together = 1 if across else shared // depth
    padded = triton.next_power_of_2(depth)
    block = max(1, tile // padded)
    programs = (triton.cdiv(height * width * together, block) * (heads // together), count)
    options = {
        "GROUPS": groups,
        "TAPS": offset.shape[3],
        "COLUMNS": columns,
        "HEADS": heads,
        "TOGETHER": together,
        "ACROSS": across,
        "CHANNELS": channels,
        "PADDED": padded,
        "BLOCK": block,
        "num_warps": _WARPS,
        # Triton's default, which newer versions require to be set.
        "enable_fp_fusion": True,
    }
    return (height, width, depth**-0.5), programs, options


@triton.jit
def _task(
    size,
    width,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    HEADS: tl.constexpr,
    TOGETHER: tl.constexpr,
    ACROSS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The part of the work that the current program does. Offsets are 64-bit, as `size` is.

    Returns:
        The frame; the channels, `(B, D)`; the rows and columns of pixels, `(B, 1)`; the offset of
        the first place in `offset`, a scalar, and what each row adds to it, `(B, 1)`, or `(B, D)`
        if a head lies across groups; the mask of existing places; the mask of existing pixels and
        channels; the index of pixel and head, `(B,)`, and its mask.
    """
    DEPTH: tl.constexpr = CHANNELS // HEADS
    SETS: tl.constexpr = HEADS // TOGETHER
    frame = tl.program_id(1)
    first = tl.program_id(0) % SETS
    row = tl.program_id(0) // SETS * BLOCK + tl.arange(0, BLOCK)
    pixel = row // TOGETHER
    head = first * TOGETHER + row % TOGETHER
    lane = tl.arange(0, PADDED)[None, :]
    channel = head[:, None] * DEPTH + lane
    there = pixel < size
    wanted = there[:, None] & (lane < DEPTH)
    # A scalar takes fewer registers than a number for each row.
    if ACROSS:
        start = frame * (4 * GROUPS) * TAPS * (2 * size)
        at = channel // (CHANNELS // GROUPS) * TAPS * (2 * size) + pixel[:, None]
        placed = wanted
    else:
        start = (frame * (4 * GROUPS) + first) * TAPS * (2 * size)
        at = pixel[:, None]
        placed = there[:, None]
    index = (frame * size + pixel) * HEADS + head
    y = (pixel // width).to(tl.float32)[:, None]
    x = (pixel % width).to(tl.float32)[:, None]
    return frame, channel, y, x, start, at, placed, wanted, index, there


@triton.jit
def _place(
    frame,
    place,
    size,
    y,
    x,
    start,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """What belongs to a place.

    Returns:
        The offset of the frame to read; the rows and columns of the tap, `(B, 1)`; the offsets of
        the dy of keys, then of values, in `offset`. A dx follows `size` numbers after its dy.
    """
    side, tap = place // TAPS, place % TAPS
    # The frames of a pair are neighbours that differ in the last bit.
    source = (frame ^ side) * size * CHANNELS
    key = start + (side * (2 * GROUPS * TAPS) + tap) * (2 * size)
    row = y + (tap // COLUMNS - TAPS // COLUMNS // 2)
    column = x + (tap % COLUMNS - COLUMNS // 2)
    return source, row, column, key, key + GROUPS * TAPS * (2 * size)


@triton.jit
def _locate(places, at, row, column, placed, wanted, height, width, CHANNELS: tl.constexpr):
    """Find the four pixels around positions.

    Returns:
        The offset of the upper left pixel, and the distance from it to the position, x and y,
        `(B, 1)` or `(B, D)`; the masks of the upper left, upper right, lower left and lower right
        pixels, `(B, D)`.
    """
    y = row + tl.load(places + at, mask=placed, other=0.0)
    x = column + tl.load(places + height.to(tl.int64) * width + at, mask=placed, other=0.0)
    left, top = tl.floor(x), tl.floor(y)
    # Compared as floats: a position far outside has no integer, and its offset is not used.
    in_left, in_right = (left >= 0) & (left < width), (left >= -1) & (left < width - 1)
    upper = wanted & (top >= 0) & (top < height)
    lower = wanted & (top >= -1) & (top < height - 1)
    corner = (top.to(tl.int32).to(tl.int64) * width + left.to(tl.int32)) * CHANNELS
    return (
        corner,
        x - left,
        y - top,
        upper & in_left,
        upper & in_right,
        lower & in_left,
        lower & in_right,
    )


@triton.jit
def _read(corner, in_a, in_b, in_c, in_d, width, CHANNELS: tl.constexpr):
    """Read the four pixels around a position, `(B, D)` each; masked pixels are zero."""
    below = corner + width * CHANNELS
    return (
        tl.load(corner, mask=in_a, other=0.0).to(tl.float32),
        tl.load(corner + CHANNELS, mask=in_b, other=0.0).to(tl.float32),
        tl.load(below, mask=in_c, other=0.0).to(tl.float32),
        tl.load(below + CHANNELS, mask=in_d, other=0.0).to(tl.float32),
    )


@triton.jit
def _spread(corner, in_a, in_b, in_c, in_d, fx, fy, value, width, CHANNELS: tl.constexpr):
    """Add parts of `(B, D)` to the four pixels: the transpose of reading between them."""
    below = corner + width * CHANNELS
    lower = value * fy
    upper = value - lower
    right_upper, right_lower = upper * fx, lower * fx
    # Only the sums matter, so no ordering of memory accesses is needed.
    tl.atomic_add(corner, upper - right_upper, mask=in_a, sem="relaxed")
    tl.atomic_add(corner + CHANNELS, right_upper, mask=in_b, sem="relaxed")
    tl.atomic_add(below, lower - right_lower, mask=in_c, sem="relaxed")
    tl.atomic_add(below + CHANNELS, right_lower, mask=in_d, sem="relaxed")


@triton.jit
def _between(a, b, c, d, fx, fy):
    upper, lower = a + (b - a) * fx, c + (d - c) * fx
    return upper + (lower - upper) * fy


@triton.jit
def _sample(
    source, channel, places, at, row, column, placed, wanted, height, width, CHANNELS: tl.constexpr
):
    """Read channels between pixels, `(B, D)`."""
    corner, fx, fy, in_a, in_b, in_c, in_d = _locate(
        places, at, row, column, placed, wanted, height, width, CHANNELS
    )
    a, b, c, d = _read(source + (corner + channel), in_a, in_b, in_c, in_d, width, CHANNELS)
    return _between(a, b, c, d, fx, fy)


@triton.jit
def _slopes(factor, a, b, c, d, fx, fy, ACROSS: tl.constexpr):
    """Derivatives by x and y, in pixels, of `factor` times the value between pixels.

    They are summed over the channels of one position: `(B, 1)`, or `(B, D)` if a head lies across
    groups.
    """
    twist = d - c - (b - a)
    x, y = factor * (b - a + twist * fy), factor * (c - a + twist * fx)
    if not ACROSS:
        x = tl.sum(x, axis=1)[:, None]
        y = tl.sum(y, axis=1)[:, None]
    return x, y


@triton.jit
def _add_places(target, at, x, y, placed, size):
    """Add derivatives by columns and rows to the gradient of offsets."""
    tl.atomic_add(target + at, y, mask=placed, sem="relaxed")
    tl.atomic_add(target + size + at, x, mask=placed, sem="relaxed")


# As constants, sizes would make Triton compile a kernel for each size.
@triton.jit(do_not_specialize=["height", "width"])
def _forward(
    q,
    k,
    v,
    offset,
    out,
    log_sum,
    height,
    width,
    scale,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    TOGETHER: tl.constexpr,
    ACROSS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = height.to(tl.int64) * width
    frame, channel, y, x, start, at, placed, wanted, index, there = _task(
        size, width, GROUPS, TAPS, HEADS, TOGETHER, ACROSS, CHANNELS, PADDED, BLOCK
    )
    here = index[:, None] * (CHANNELS // HEADS) + tl.arange(0, PADDED)[None, :]
    query = tl.load(q + here, mask=wanted, other=0.0).to(tl.float32) * scale

    # The running softmax: the largest logit so far, and sums relative to it.
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, PADDED), tl.float32)
    for place in range(2 * TAPS):
        source, row, column, at_key, at_value = _place(
            frame, place, size, y, x, start, GROUPS, TAPS, COLUMNS, CHANNELS
        )
        keys, values = offset + at_key, offset + at_value
        key = _sample(
            k + source, channel, keys, at, row, column, placed, wanted, height, width, CHANNELS
        )
        value = _sample(
            v + source, channel, values, at, row, column, placed, wanted, height, width, CHANNELS
        )
        logit = tl.sum(query * key, axis=1)
        higher = tl.maximum(peak, logit)
        kept, weight = tl.exp(peak - higher), tl.exp(logit - higher)
        total = total * kept + weight
        result = result * kept[:, None] + value * weight[:, None]
        peak = higher
    result = (result / total[:, None]).to(out.dtype.element_ty)
    tl.store(out + here, result, mask=wanted)
    tl.store(log_sum + index, peak + tl.log(total), mask=there)


@triton.jit(do_not_specialize=["height", "width"])
def _backward(
    q,
    k,
    v,
    offset,
    log_sum,
    dout,
    dq,
    dk,
    dv,
    doffset,
    height,
    width,
    scale,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    COLUMNS: tl.constexpr,
    HEADS: tl.constexpr,
    TOGETHER: tl.constexpr,
    ACROSS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = height.to(tl.int64) * width
    frame, channel, y, x, start, at, placed, wanted, index, there = _task(
        size, width, GROUPS, TAPS, HEADS, TOGETHER, ACROSS, CHANNELS, PADDED, BLOCK
    )
    here = index[:, None] * (CHANNELS // HEADS) + tl.arange(0, PADDED)[None, :]
    query = tl.load(q + here, mask=wanted, other=0.0).to(tl.float32) * scale
    dresult = tl.load(dout + here, mask=wanted, other=0.0).to(tl.float32)
    log_total = tl.load(log_sum + index, mask=there, other=0.0)

    # With weights p and their gradients dp, the gradient of logit i is p_i (dp_i - mean), where
    # mean = sum_j p_j dp_j needs a separate pass.
    mean = tl.zeros((BLOCK,), tl.float32)
    for place in range(2 * TAPS):
        source, row, column, at_key, at_value = _place(
            frame, place, size, y, x, start, GROUPS, TAPS, COLUMNS, CHANNELS
        )
        keys, values = offset + at_key, offset + at_value
        key = _sample(
            k + source, channel, keys, at, row, column, placed, wanted, height, width, CHANNELS
        )
        value = _sample(
            v + source, channel, values, at, row, column, placed, wanted, height, width, CHANNELS
        )
        weight = tl.exp(tl.sum(query * key, axis=1) - log_total)
        mean += weight * tl.sum(dresult * value, axis=1)

    dquery = tl.zeros((BLOCK, PADDED), tl.float32)
    for place in range(2 * TAPS):
        source, row, column, at_key, at_value = _place(
            frame, place, size, y, x, start, GROUPS, TAPS, COLUMNS, CHANNELS
        )
        at_k, fx_k, fy_k, in_a, in_b, in_c, in_d = _locate(
            offset + at_key, at, row, column, placed, wanted, height, width, CHANNELS
        )
        at_k += channel
        a, b, c, d = _read(k + source + at_k, in_a, in_b, in_c, in_d, width, CHANNELS)
        key = _between(a, b, c, d, fx_k, fy_k)
        key_x, key_y = _slopes(query, a, b, c, d, fx_k, fy_k, ACROSS)
        weight = tl.exp(tl.sum(query * key, axis=1) - log_total)[:, None]

        at_v, fx_v, fy_v, in_e, in_f, in_g, in_h = _locate(
            offset + at_value, at, row, column, placed, wanted, height, width, CHANNELS
        )
        at_v += channel
        a, b, c, d = _read(v + source + at_v, in_e, in_f, in_g, in_h, width, CHANNELS)
        value = _between(a, b, c, d, fx_v, fy_v)
        value_x, value_y = _slopes(dresult, a, b, c, d, fx_v, fy_v, ACROSS)
        dlogit = weight * (tl.sum(dresult * value, axis=1) - mean)[:, None]

        dquery += dlogit * key
        dkey, dvalue = dlogit * query, weight * dresult
        _spread(dk + source + at_k, in_a, in_b, in_c, in_d, fx_k, fy_k, dkey, width, CHANNELS)
        _spread(dv + source + at_v, in_e, in_f, in_g, in_h, fx_v, fy_v, dvalue, width, CHANNELS)
        _add_places(doffset + at_key, at, dlogit * key_x, dlogit * key_y, placed, size)
        _add_places(doffset + at_value, at, weight * value_x, weight * value_y, placed, size)
    tl.store(dq + here, dquery * scale, mask=wanted)
