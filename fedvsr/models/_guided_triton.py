"""RVRT's guided deformable attention as two Triton kernels, for GPUs.

The numbers are those of `rvrt.guided_attention`, accumulated in float32 whatever the dtype of the
input. A program takes some pixels and one head: it reads keys and values where the places point and
uses them up in registers, so no sampled key or value is ever written to memory.

Memory: the output, 4 bytes per pixel and channel, and for the backward pass 4 bytes per pixel and
head next to the inputs themselves; 1.2 KB per pixel and frame in the paper's network, where the
sampled keys and values alone would be 41 KB. The backward pass takes the four gradients, those of
keys and values in float32, and nothing else. The inputs are held with channels last; given
otherwise, they are copied.

Gradients of keys, values and positions are added up atomically: on a GPU their last bits depend on
the order in which programs run, as those of `grid_sample` do.

In the kernels: D channels of a head, padded to a power of two; B pixels of a program.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements of a program's tile B x D and its warps. A tile's row, the channels of a head at one
# pixel, is contiguous and read 16 bytes a thread. The forward pass holds about 11 tiles at once
# (query, result, eight corners, one in use), the backward pass 15 and as many addresses: with 8 and
# 4 elements a thread that leaves both below 128 registers, so that 16 warps or more share a
# multiprocessor and hide the latency of the gathers.
_FORWARD_TILE = 1024
_BACKWARD_TILE = 512
_WARPS = 4


@torch.compiler.disable
def guided_attention(q: Tensor, k: Tensor, v: Tensor, grid: Tensor, heads: int) -> Tensor:
    """What `rvrt.guided_attention` computes, of the same arguments.

    Args:
        q: queries, `(N, C, H, W)`, pairs of frames folded.
        k: keys of the other pair, alike.
        v: its values.
        grid: where to sample, `(N, 2, G, P, H, W, 2)`.
        heads: attention heads over the channels.

    Returns:
        `(N, C, H, W)`, float32, channels last in memory.
    """
    last = (x.permute(0, 2, 3, 1).contiguous() for x in (q, k, v))
    out: Tensor = _Attention.apply(*last, grid.float().contiguous(), heads)
    return out.permute(0, 3, 1, 2)


class _Attention(torch.autograd.Function):
    """`(N, H, W, C)` three times and a float32 grid, all contiguous, to `(N, H, W, C)`."""

    @staticmethod
    def forward(
        ctx: Any, q_NHWC: Tensor, k_NHWC: Tensor, v_NHWC: Tensor, grid: Tensor, heads: int
    ) -> Tensor:
        count, height, width, _ = q_NHWC.shape
        out = torch.empty_like(q_NHWC, dtype=torch.float32)
        log_sum = out.new_empty(count, heads, height * width)
        sizes, programs, options = _launch(q_NHWC, grid, heads, _FORWARD_TILE)
        # Triton launches on the current device, whatever holds the tensors.
        with torch.cuda.device_of(q_NHWC):
            _forward[programs](q_NHWC, k_NHWC, v_NHWC, grid, out, log_sum, *sizes, **options)
        ctx.heads = heads
        ctx.save_for_backward(q_NHWC, k_NHWC, v_NHWC, grid, log_sum)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout_NHWC: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, grid, log_sum = ctx.saved_tensors
        dq, dgrid = torch.empty_like(q), torch.zeros_like(grid)
        dk, dv = (torch.zeros_like(x, dtype=torch.float32) for x in (k, v))
        sizes, programs, options = _launch(q, grid, ctx.heads, _BACKWARD_TILE)
        inputs = (q, k, v, grid, log_sum, dout_NHWC.float().contiguous())
        with torch.cuda.device_of(q):
            _backward[programs](*inputs, dq, dk, dv, dgrid, *sizes, **options)
        return dq, dk.to(k.dtype), dv.to(v.dtype), dgrid, None


def _launch(
    q_NHWC: Tensor, grid: Tensor, heads: int, tile: int
) -> tuple[tuple[int, int, float], tuple[int, int], dict[str, int]]:
    """Runtime sizes and the scale, numbers of programs, and what a kernel is compiled for."""
    count, height, width, channels = q_NHWC.shape
    padded = triton.next_power_of_2(channels // heads)
    block = max(1, tile // padded)
    # The heads of a pixel come one after the other: they share lines of the cache, and places.
    programs = (triton.cdiv(height * width, block) * heads, count)
    options = {
        "GROUPS": grid.shape[2] // 2,
        "TAPS": grid.shape[3],
        "HEADS": heads,
        "CHANNELS": channels,
        "PADDED": padded,
        "BLOCK": block,
        "num_warps": _WARPS,
    }
    return (height, width, (channels // heads) ** -0.5), programs, options


@triton.jit
def _task(
    size,
    GROUPS: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """What the program at hand works on.

    Returns:
        The frame; the head; pixels `(B,)`; channels `(1, D)`; the key group: a number, or `(1, D)`
        where a head spans groups; whether a pixel has positions, `(B, 1)` or `(B, D)` likewise;
        whether pixel and channel exist, `(B, D)`.
    """
    DEPTH: tl.constexpr = CHANNELS // HEADS
    SPAN: tl.constexpr = CHANNELS // GROUPS
    # Offsets of whole tensors and of frames do not fit 32 bits.
    frame = tl.program_id(1).to(tl.int64)
    head = tl.program_id(0) % HEADS
    pixel = tl.program_id(0) // HEADS * BLOCK + tl.arange(0, BLOCK)
    lane = tl.arange(0, PADDED)[None, :]
    channel = head * DEPTH + lane
    there = (pixel < size)[:, None]
    wanted = there & (lane < DEPTH)
    if SPAN % DEPTH == 0:
        group = head * DEPTH // SPAN
        placed = there
    else:
        group = channel // SPAN
        placed = wanted
    return frame, head, pixel, channel, group, placed, wanted


@triton.jit
def _place(
    frame,
    place,
    size,
    channel,
    group,
    pixel,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    CHANNELS: tl.constexpr,
):
    """Where a place of all pixels is found.

    Returns:
        Offsets of the channels of the first pixel in the frame to read, `(1, D)`, and offsets into
        the grid of the x at which to read keys and values; a y lies next to its x.
    """
    side, tap = place // TAPS, place % TAPS
    # The frames of a pair are neighbours that differ in the last bit.
    source = (frame ^ side) * size * CHANNELS + channel
    plane = ((frame * 2 + side) * (2 * GROUPS) + group) * TAPS + tap
    at = 2 * (plane * size + pixel[:, None])
    return source, at, at + 2 * GROUPS * TAPS * size.to(tl.int64)


@triton.jit
def _locate(places, placed, height, width):
    """Column and row of the upper left of the four pixels around, and the way beyond it."""
    x = (tl.load(places, mask=placed, other=0.0) + 1.0) * ((width - 1) * 0.5)
    y = (tl.load(places + 1, mask=placed, other=0.0) + 1.0) * ((height - 1) * 0.5)
    # All that lies this far out reads zeros; further out there might be no integer.
    x = tl.where(x < -2.0, -2.0, tl.where(x > width + 1.0, width + 1.0, x))
    y = tl.where(y < -2.0, -2.0, tl.where(y > height + 1.0, height + 1.0, y))
    left, top = tl.floor(x), tl.floor(y)
    return left.to(tl.int32), top.to(tl.int32), x - left, y - top


@triton.jit
def _corner(x, y, wanted, height, width, CHANNELS: tl.constexpr):
    """Offset of a pixel from the first of its frame, and whether it lies in the image."""
    inside = wanted & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return (y.to(tl.int64) * width + x) * CHANNELS, inside


@triton.jit
def _read(source, x, y, wanted, height, width, CHANNELS: tl.constexpr):
    offset, inside = _corner(x, y, wanted, height, width, CHANNELS)
    return tl.load(source + offset, mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _read_corners(source, left, top, wanted, height, width, CHANNELS: tl.constexpr):
    """The four pixels: upper left, upper right, lower left, lower right, `(B, D)` each."""
    return (
        _read(source, left, top, wanted, height, width, CHANNELS),
        _read(source, left + 1, top, wanted, height, width, CHANNELS),
        _read(source, left, top + 1, wanted, height, width, CHANNELS),
        _read(source, left + 1, top + 1, wanted, height, width, CHANNELS),
    )


@triton.jit
def _add(target, x, y, value, wanted, height, width, CHANNELS: tl.constexpr):
    offset, inside = _corner(x, y, wanted, height, width, CHANNELS)
    # Only the sum matters, not what else is seen when: no ordering of memory is needed.
    tl.atomic_add(target + offset, value, mask=inside, sem="relaxed")


@triton.jit
def _add_corners(target, left, top, fx, fy, value, wanted, height, width, CHANNELS: tl.constexpr):
    """Spread `(B, D)` over the four pixels: the transpose of reading between them."""
    upper, lower = value * (1.0 - fy), value * fy
    _add(target, left, top, upper * (1.0 - fx), wanted, height, width, CHANNELS)
    _add(target, left + 1, top, upper * fx, wanted, height, width, CHANNELS)
    _add(target, left, top + 1, lower * (1.0 - fx), wanted, height, width, CHANNELS)
    _add(target, left + 1, top + 1, lower * fx, wanted, height, width, CHANNELS)


@triton.jit
def _mix(a, b, t):
    return a * (1.0 - t) + b * t


@triton.jit
def _sample(source, places, placed, wanted, height, width, CHANNELS: tl.constexpr):
    """Channels between pixels, `(B, D)`."""
    left, top, fx, fy = _locate(places, placed, height, width)
    a, b, c, d = _read_corners(source, left, top, wanted, height, width, CHANNELS)
    return _mix(_mix(a, b, fx), _mix(c, d, fx), fy)


@triton.jit
def _add_places(
    target, slope_x, slope_y, placed, height, width, DEPTH: tl.constexpr, SPAN: tl.constexpr
):
    """Add what a step by a pixel would change, `(B, D)`, to the gradient of the grid."""
    if SPAN % DEPTH == 0:
        slope_x = tl.sum(slope_x, axis=1)[:, None]
        slope_y = tl.sum(slope_y, axis=1)[:, None]
    tl.atomic_add(target, slope_x * ((width - 1) * 0.5), mask=placed, sem="relaxed")
    tl.atomic_add(target + 1, slope_y * ((height - 1) * 0.5), mask=placed, sem="relaxed")


@triton.jit(do_not_specialize=["height", "width"])
def _forward(
    q,
    k,
    v,
    grid,
    out,
    log_sum,
    height,
    width,
    scale,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = height * width
    frame, head, pixel, channel, group, placed, wanted = _task(
        size, GROUPS, HEADS, CHANNELS, PADDED, BLOCK
    )
    here = (frame * size + pixel[:, None]) * CHANNELS + channel
    query = tl.load(q + here, mask=wanted, other=0.0).to(tl.float32) * scale

    # The softmax as it grows: the largest logit so far, and sums relative to it.
    peak = tl.full((BLOCK,), float("-inf"), tl.float32)
    total = tl.zeros((BLOCK,), tl.float32)
    result = tl.zeros((BLOCK, PADDED), tl.float32)
    for place in range(2 * TAPS):
        source, key_places, value_places = _place(
            frame, place, size, channel, group, pixel, GROUPS, TAPS, CHANNELS
        )
        key = _sample(k + source, grid + key_places, placed, wanted, height, width, CHANNELS)
        value = _sample(v + source, grid + value_places, placed, wanted, height, width, CHANNELS)
        logit = tl.sum(query * key, axis=1)
        higher = tl.maximum(peak, logit)
        kept, weight = tl.exp(peak - higher), tl.exp(logit - higher)
        total = total * kept + weight
        result = result * kept[:, None] + weight[:, None] * value
        peak = higher
    tl.store(out + here, result / total[:, None], mask=wanted)
    tl.store(
        log_sum + (frame * HEADS + head) * size + pixel, peak + tl.log(total), mask=pixel < size
    )


@triton.jit(do_not_specialize=["height", "width"])
def _backward(
    q,
    k,
    v,
    grid,
    log_sum,
    dout,
    dq,
    dk,
    dv,
    dgrid,
    height,
    width,
    scale,
    GROUPS: tl.constexpr,
    TAPS: tl.constexpr,
    HEADS: tl.constexpr,
    CHANNELS: tl.constexpr,
    PADDED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    size = height * width
    frame, head, pixel, channel, group, placed, wanted = _task(
        size, GROUPS, HEADS, CHANNELS, PADDED, BLOCK
    )
    here = (frame * size + pixel[:, None]) * CHANNELS + channel
    query = tl.load(q + here, mask=wanted, other=0.0).to(tl.float32) * scale
    dresult = tl.load(dout + here, mask=wanted, other=0.0)
    log_total = tl.load(
        log_sum + (frame * HEADS + head) * size + pixel, mask=pixel < size, other=0.0
    )

    # With weights p and the gradients dp of them, the gradient of logit i is
    # p_i (dp_i - sum_j p_j dp_j): first the sum.
    mean = tl.zeros((BLOCK,), tl.float32)
    for place in range(2 * TAPS):
        source, key_places, value_places = _place(
            frame, place, size, channel, group, pixel, GROUPS, TAPS, CHANNELS
        )
        key = _sample(k + source, grid + key_places, placed, wanted, height, width, CHANNELS)
        value = _sample(v + source, grid + value_places, placed, wanted, height, width, CHANNELS)
        weight = tl.exp(tl.sum(query * key, axis=1) - log_total)
        mean += weight * tl.sum(dresult * value, axis=1)

    dquery = tl.zeros((BLOCK, PADDED), tl.float32)
    for place in range(2 * TAPS):
        source, key_places, value_places = _place(
            frame, place, size, channel, group, pixel, GROUPS, TAPS, CHANNELS
        )
        left, top, fx, fy = _locate(grid + key_places, placed, height, width)
        a, b, c, d = _read_corners(k + source, left, top, wanted, height, width, CHANNELS)
        key = _mix(_mix(a, b, fx), _mix(c, d, fx), fy)
        slope_x = query * _mix(b - a, d - c, fy)
        slope_y = query * (_mix(c, d, fx) - _mix(a, b, fx))
        weight = tl.exp(tl.sum(query * key, axis=1) - log_total)

        left_v, top_v, fx_v, fy_v = _locate(grid + value_places, placed, height, width)
        a, b, c, d = _read_corners(v + source, left_v, top_v, wanted, height, width, CHANNELS)
        value = _mix(_mix(a, b, fx_v), _mix(c, d, fx_v), fy_v)
        dvalue = dresult * weight[:, None]
        dlogit = (weight * (tl.sum(dresult * value, axis=1) - mean))[:, None]

        dquery += dlogit * key
        _add_corners(
            dk + source, left, top, fx, fy, dlogit * query, wanted, height, width, CHANNELS
        )
        _add_corners(
            dv + source, left_v, top_v, fx_v, fy_v, dvalue, wanted, height, width, CHANNELS
        )
        _add_places(
            dgrid + key_places,
            dlogit * slope_x,
            dlogit * slope_y,
            placed,
            height,
            width,
            CHANNELS // HEADS,
            CHANNELS // GROUPS,
        )
        _add_places(
            dgrid + value_places,
            dvalue * _mix(b - a, d - c, fy_v),
            dvalue * (_mix(c, d, fx_v) - _mix(a, b, fx_v)),
            placed,
            height,
            width,
            CHANNELS // HEADS,
            CHANNELS // GROUPS,
        )
    tl.store(dq + here, dquery * scale, mask=wanted)
