"""Attention in windows of an image as Triton kernels, for GPUs.

Tokens stay in image order. The cyclic shift and the cut into windows are index arithmetic in the
kernels, as is the relative position of two tokens, so neither windows, masks, nor a bias for each
pair of tokens is written to memory. Accumulation and softmax are in float32 whatever the dtype.

Memory: for the backward pass 4 bytes per token and head are kept beside the inputs and the output;
no logits. The backward pass computes the logits anew, once for each of three gradients: those of
queries, of keys and values, and of the bias. Partial sums of the last take at most 24 MB.

Every sum has a fixed order, so equal inputs give equal bits, also on GPUs.

G stacks of D frames, H x W pixels, C channels in h heads, P rows of the bias table. In the kernels
Q is the rows (queries) and K the columns (keys) of a program's tile of logits; E the channels of a
head, padded to a power of two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

# Rows and columns of a tile of logits. Its warps and stages (loads ahead of use) are chosen so that
# no register spills on compute capabilities 8.0 and 9.0, except three of exact float32 products,
# and a program takes at most 66 KB of shared memory: 8.0 and 9.0 hold two, 8.6 one.
_TILE = 64
_WARPS = 4
# Rows of the bias table whose gradients a program adds up.
_TABLE_ROWS = 16
# Programs that sum the gradient of the bias, about, and the largest memory of their partial sums.
_BIAS_PROGRAMS = 768
_BIAS_NUMBERS = 6 * 2**20


def window_attention(
    qkv_GDHWC: Tensor, table_Ph: Tensor, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """Self-attention in windows, with a learned bias for each relative position.

    Windows are cut from the image after it moved by `-shift`, with wrap-around. `SEPARATE` is added
    to the logits of tokens that the wrap-around brought together.

    Args:
        qkv_GDHWC: queries, keys and values side by side, `(G, D, H, W, 3C)`; D, H and W are
            multiples of the window.
        table_Ph: the bias, one column per head. Its depth may exceed the window's.
        window: depth, height and width.
        shift: frames, rows and columns.

    Returns:
        `(G, D, H, W, C)`, heads side by side.
    """
    return _apply(qkv_GDHWC, table_Ph, table_Ph.shape[1], window, shift)


def mutual_attention(
    qkv_GDHWC: Tensor, heads: int, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    """Attention between the two frames of each window, without a bias.

    The queries of each frame attend to the other frame's tokens; the result takes the place of
    these tokens, not of the queries.

    Args:
        qkv_GDHWC: see `window_attention`.
        heads: attention heads.
        window: two frames, height and width.
        shift: frames, rows and columns.
    """
    assert window[0] == 2
    return _apply(qkv_GDHWC, None, heads, window, shift)


def _apply(
    qkv: Tensor, table: Tensor | None, heads: int, window: Sequence[int], shift: Sequence[int]
) -> Tensor:
    assert all(s % w == 0 for s, w in zip(qkv.shape[1:4], window, strict=True))
    if table is not None:
        rows = (2 * window[1] - 1) * (2 * window[2] - 1)
        assert len(table) % rows == 0
        assert len(table) >= (2 * window[0] - 1) * rows
    out: Tensor = _Attention.apply(qkv.contiguous(), table, heads, list(window), list(shift))
    return out


class _Attention(torch.autograd.Function):
    """Calls the operators below; they have no gradients of their own."""

    @staticmethod
    def forward(
        ctx: Any,
        qkv: Tensor,
        table: Tensor | None,
        heads: int,
        window: list[int],
        shift: list[int],
    ) -> Tensor:
        # A head's column is contiguous: neighbours in a window are neighbours in the table.
        bias = None if table is None else table.t().float().contiguous()
        out, log_sum = torch.ops.fedvsr.window_attention(qkv, bias, heads, window, shift)
        ctx.save_for_backward(qkv, table, bias, out, log_sum)
        ctx.settings = heads, window, shift
        result: Tensor = out
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        qkv, table, bias, out, log_sum = ctx.saved_tensors
        dqkv, dtable = torch.ops.fedvsr.window_attention_backward(
            dout, qkv, bias, out, log_sum, *ctx.settings
        )
        return dqkv, None if table is None else dtable.to(table.dtype), None, None, None


torch.library.define(
    "fedvsr::window_attention",
    "(Tensor qkv, Tensor? bias, int heads, int[] window, int[] shift) -> (Tensor, Tensor)",
)
torch.library.define(
    "fedvsr::window_attention_backward",
    "(Tensor dout, Tensor qkv, Tensor? bias, Tensor out, Tensor log_sum, int heads, "
    "int[] window, int[] shift) -> (Tensor, Tensor)",
)


@torch.library.register_fake("fedvsr::window_attention")
def _forward_outputs(
    qkv: Tensor, bias: Tensor | None, heads: int, window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor]:
    """The output, and the logarithm of the sum of each softmax, by window, head and query."""
    out = qkv.new_empty(*qkv.shape[:-1], qkv.shape[-1] // 3)
    return out, qkv.new_empty(heads * (qkv.numel() // qkv.shape[-1]), dtype=torch.float32)


@torch.library.register_fake("fedvsr::window_attention_backward")
def _backward_outputs(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    heads: int,
    window: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    """The gradients of `qkv` and of the bias table `(P, h)`, empty if there is none."""
    shape = (0, heads) if bias is None else (bias.shape[1], heads)
    return torch.empty_like(qkv), qkv.new_empty(shape, dtype=torch.float32)


@torch.library.impl("fedvsr::window_attention", "default")
def _run_forward(
    qkv: Tensor, bias: Tensor | None, heads: int, window: list[int], shift: list[int]
) -> tuple[Tensor, Tensor]:
    out, log_sum = _forward_outputs(qkv, bias, heads, window, shift)
    plan = _Plan(qkv, bias, heads, window, shift)
    # Triton launches on the current device, not on that of the tensors.
    with torch.cuda.device_of(qkv):
        _forward[(plan.programs,)](qkv, bias, out, log_sum, *plan.sizes, **plan.options)
    return out, log_sum


@torch.library.impl("fedvsr::window_attention_backward", "default")
def _run_backward(
    dout: Tensor,
    qkv: Tensor,
    bias: Tensor | None,
    out: Tensor,
    log_sum: Tensor,
    heads: int,
    window: list[int],
    shift: list[int],
) -> tuple[Tensor, Tensor]:
    dqkv, dtable = _backward_outputs(dout, qkv, bias, out, log_sum, heads, window, shift)
    plan = _Plan(qkv, bias, heads, window, shift)
    if not _has_rows(dout):
        dout = dout.contiguous()
    row = dout.stride(3)
    # For each query, the sum over its gradients of weights, weighted.
    delta = torch.empty_like(log_sum)
    inputs = (qkv, bias, dout, log_sum, delta)
    with torch.cuda.device_of(qkv):
        _backward_queries[(plan.programs,)](*inputs, out, dqkv, row, *plan.sizes, **plan.options)
        _backward_keys[(plan.programs,)](*inputs, dqkv, row, *plan.sizes, **plan.options)
        if bias is not None:
            chunks = plan.bias_chunks()
            partial = delta.new_empty(chunks, heads, plan.tokens, plan.tokens)
            programs = (plan.tiles**2 * heads, chunks)
            _backward_bias[programs](
                *inputs, partial, row, plan.windows, *plan.sizes, **plan.options
            )
            sums = (triton.cdiv(len(dtable), _TABLE_ROWS) * heads,)
            _sum_bias[sums](partial, dtable, chunks, **plan.table_options())
    return dqkv, dtable


def _has_rows(x: Tensor) -> bool:
    """Whether tokens have equal distances in memory, and each token's channels are adjacent.

    That of a contiguous tensor, and of a part of its channels.
    """
    rows = x.stride(3)
    for side, stride in zip(x.shape[3:0:-1], x.stride()[2::-1], strict=True):
        rows *= side
        if stride != rows:
            return False
    return x.stride(4) == 1


def _exact_products() -> bool:
    """Whether PyTorch's own products of float32 matrices do without tensor cores."""
    matmul = torch.backends.cuda.matmul
    # Reading the older name fails after the newer, of PyTorch 2.9, was set.
    precision = getattr(matmul, "fp32_precision", None)
    return not matmul.allow_tf32 if precision is None else precision != "tf32"


class _Plan:
    """Sizes, numbers of programs and compile-time constants of the kernels."""

    def __init__(
        self,
        qkv: Tensor,
        bias: Tensor | None,
        heads: int,
        window: Sequence[int],
        shift: Sequence[int],
    ) -> None:
        stacks, frames, height, width, channels = qkv.shape
        depth = channels // (3 * heads)
        # Frames of mutual attention are windows of their own.
        mutual = bias is None
        shape = (1 if mutual else window[0], window[1], window[2])
        self.heads = heads
        self.tokens = shape[0] * shape[1] * shape[2]
        self.windows = stacks * frames * height * width // self.tokens
        self.tiles = triton.cdiv(self.tokens, _TILE)
        self.programs = self.windows * self.tiles * heads
        self.sizes = (frames, height, width, depth**-0.5)
        # Rows of the table for one step in time, and the deepest window that it serves.
        self.plane = (2 * shape[1] - 1) * (2 * shape[2] - 1)
        self.table_depth = 1 if bias is None else (bias.shape[1] // self.plane + 1) // 2
        self.window = dict(zip(("FRAMES", "ROWS", "COLUMNS"), shape, strict=True))
        exact = qkv.dtype == torch.float32 and _exact_products()
        self.options = {
            **self.window,
            **dict(zip(("SHIFT_D", "SHIFT_H", "SHIFT_W"), shift, strict=True)),
            "TABLE_DEPTH": self.table_depth,
            "MUTUAL": mutual,
            "HEADS": heads,
            "DEPTH": depth,
            # Matrix products need at least 16 channels.
            "PADDED": max(16, triton.next_power_of_2(depth)),
            "TILE": _TILE,
            "PRECISION": "ieee" if exact else "tf32",
            # Exact products take no tensor cores, but more registers.
            "num_warps": 2 * _WARPS if exact else _WARPS,
            "num_stages": 1 if exact else 2,
        }

    def bias_chunks(self) -> int:
        """Parts of the windows whose gradients of the bias are summed apart."""
        wanted: int = triton.cdiv(_BIAS_PROGRAMS, self.tiles**2 * self.heads)
        most = max(1, _BIAS_NUMBERS // (self.heads * self.tokens**2))
        return min(wanted, most, self.windows)

    def table_options(self) -> dict[str, int]:
        """Compile-time constants of `_sum_bias`."""
        return {
            **self.window,
            "TABLE_DEPTH": self.table_depth,
            "HEADS": self.heads,
            "TILE": _TILE,
            "BLOCK": _TABLE_ROWS,
            "num_warps": _WARPS,
        }


@triton.jit
def _places(
    window,
    token,
    frames,
    height,
    width,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT_D: tl.constexpr,
    SHIFT_H: tl.constexpr,
    SHIFT_W: tl.constexpr,
    OTHER: tl.constexpr,
):
    """Where tokens of a window lie in the image.

    Returns:
        The tokens' numbers in image order, 64-bit, in the other frame of the pair if `OTHER`; the
        region of the unshifted image that they belong to.
    """
    across, down, along = width // COLUMNS, height // ROWS, frames // FRAMES
    x = window % across * COLUMNS + token % COLUMNS
    y = window // across % down * ROWS + token // COLUMNS % ROWS
    z = window // (across * down) % along * FRAMES + token // (COLUMNS * ROWS)
    # Compared after the shift: what wrapped around is at the far edges.
    region = (
        (z >= frames - SHIFT_D).to(tl.int32) * 4
        + (y >= height - SHIFT_H).to(tl.int32) * 2
        + (x >= width - SHIFT_W).to(tl.int32)
    )
    if OTHER:
        z = z ^ 1
    stack = (window // (across * down * along)).to(tl.int64)
    z, y, x = (z + SHIFT_D) % frames, (y + SHIFT_H) % height, (x + SHIFT_W) % width
    return ((stack * frames + z) * height + y) * width + x, region


@triton.jit
def _table_row(token, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The table's row for tokens i and j is this of i, minus this of j, plus a constant."""
    z, y = token // (ROWS * COLUMNS), token // COLUMNS % ROWS
    return (z * (2 * ROWS - 1) + y) * (2 * COLUMNS - 1) + token % COLUMNS


@triton.jit
def _tile(x, place, head, stride, there, DEPTH: tl.constexpr, PADDED: tl.constexpr):
    """Read one head's channels of tokens, `(tokens, E)`; zero where masked."""
    lane = tl.arange(0, PADDED)[None, :]
    at = place[:, None] * stride + head * DEPTH + lane
    return tl.load(x + at, mask=there[:, None] & (lane < DEPTH), other=0.0)


@triton.jit
def _write(x, value, place, head, stride, there, DEPTH: tl.constexpr, PADDED: tl.constexpr):
    lane = tl.arange(0, PADDED)[None, :]
    at = place[:, None] * stride + head * DEPTH + lane
    tl.store(x + at, value.to(x.dtype.element_ty), mask=there[:, None] & (lane < DEPTH))


@triton.jit
def _biased(
    logits,
    bias,
    head,
    query,
    key,
    query_region,
    key_region,
    query_there,
    key_there,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFTED: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    MUTUAL: tl.constexpr,
):
    """Add bias and mask to logits; the arguments broadcast to their shape."""
    PLANE: tl.constexpr = (2 * ROWS - 1) * (2 * COLUMNS - 1)
    CENTRE: tl.constexpr = ((TABLE_DEPTH - 1) * (2 * ROWS - 1) + ROWS - 1) * (2 * COLUMNS - 1) + (
        COLUMNS - 1
    )
    if not MUTUAL:
        row = _table_row(query, ROWS, COLUMNS) - _table_row(key, ROWS, COLUMNS) + CENTRE
        column = bias + head * ((2 * TABLE_DEPTH - 1) * PLANE)
        logits += tl.load(column + row, mask=query_there & key_there, other=0.0)
    if SHIFTED:
        logits += tl.where(query_region == key_region, 0.0, -100.0)
    return tl.where(key_there, logits, float("-inf"))


# As constants, sizes would make Triton compile a kernel for each size.
@triton.jit(do_not_specialize=["frames", "height", "width"])
def _forward(
    qkv,
    bias,
    out,
    log_sum,
    frames,
    height,
    width,
    scale,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT_D: tl.constexpr,
    SHIFT_H: tl.constexpr,
    SHIFT_W: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    MUTUAL: tl.constexpr,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TOKENS: tl.constexpr = FRAMES * ROWS * COLUMNS
    TILES: tl.constexpr = (TOKENS + TILE - 1) // TILE
    SHIFTED: tl.constexpr = SHIFT_D + SHIFT_H + SHIFT_W > 0
    # Heads of the same tokens are adjacent in memory.
    head = tl.program_id(0) % HEADS
    window = tl.program_id(0) // HEADS // TILES
    query = tl.program_id(0) // HEADS % TILES * TILE + tl.arange(0, TILE)
    q_there = query < TOKENS
    place, q_region = _places(
        window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
        MUTUAL,
    )  # fmt: skip
    CHANNELS: tl.constexpr = HEADS * DEPTH
    q = _tile(qkv, place, head, 3 * CHANNELS, q_there, DEPTH, PADDED)

    # The running softmax: the largest logit so far, and sums relative to it.
    peak = tl.full((TILE,), float("-inf"), tl.float32)
    total = tl.zeros((TILE,), tl.float32)
    result = tl.zeros((TILE, PADDED), tl.float32)
    for first in range(0, TOKENS, TILE):
        key = first + tl.arange(0, TILE)
        k_there = key < TOKENS
        at, k_region = _places(
            window, key, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
        k = _tile(qkv + CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        v = _tile(qkv + 2 * CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits = _biased(
            logits, bias, head, query[:, None], key[None, :], q_region[:, None], k_region[None, :],
            q_there[:, None], k_there[None, :], FRAMES, ROWS, COLUMNS, SHIFTED, TABLE_DEPTH, MUTUAL,
        )  # fmt: skip
        higher = tl.maximum(peak, tl.max(logits, axis=1))
        kept, weights = tl.exp(peak - higher), tl.exp(logits - higher[:, None])
        total = total * kept + tl.sum(weights, axis=1)
        result = result * kept[:, None]
        result = tl.dot(weights.to(v.dtype), v, result, input_precision=PRECISION)
        peak = higher
    if MUTUAL:
        place, _ = _places(
            window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
    _write(out, result / total[:, None], place, head, CHANNELS, q_there, DEPTH, PADDED)
    row = (window.to(tl.int64) * HEADS + head) * TOKENS + query
    tl.store(log_sum + row, peak + tl.log(total), mask=q_there)


@triton.jit(do_not_specialize=["dout_stride", "frames", "height", "width"])
def _backward_queries(
    qkv,
    bias,
    dout,
    log_sum,
    delta,
    out,
    dqkv,
    dout_stride,
    frames,
    height,
    width,
    scale,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT_D: tl.constexpr,
    SHIFT_H: tl.constexpr,
    SHIFT_W: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    MUTUAL: tl.constexpr,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TOKENS: tl.constexpr = FRAMES * ROWS * COLUMNS
    TILES: tl.constexpr = (TOKENS + TILE - 1) // TILE
    SHIFTED: tl.constexpr = SHIFT_D + SHIFT_H + SHIFT_W > 0
    CHANNELS: tl.constexpr = HEADS * DEPTH
    head = tl.program_id(0) % HEADS
    window = tl.program_id(0) // HEADS // TILES
    query = tl.program_id(0) // HEADS % TILES * TILE + tl.arange(0, TILE)
    q_there = query < TOKENS
    place, q_region = _places(
        window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
        False,
    )  # fmt: skip
    o = _tile(out, place, head, CHANNELS, q_there, DEPTH, PADDED)
    do = _tile(dout, place, head, dout_stride, q_there, DEPTH, PADDED)
    mean = tl.sum(o.to(tl.float32) * do.to(tl.float32), axis=1)
    row = (window.to(tl.int64) * HEADS + head) * TOKENS + query
    tl.store(delta + row, mean, mask=q_there)
    log_total = tl.load(log_sum + row, mask=q_there, other=float("inf"))
    if MUTUAL:
        place, _ = _places(
            window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            True,
        )  # fmt: skip
    q = _tile(qkv, place, head, 3 * CHANNELS, q_there, DEPTH, PADDED)

    dq = tl.zeros((TILE, PADDED), tl.float32)
    for first in range(0, TOKENS, TILE):
        key = first + tl.arange(0, TILE)
        k_there = key < TOKENS
        at, k_region = _places(
            window, key, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
        k = _tile(qkv + CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        v = _tile(qkv + 2 * CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits = _biased(
            logits, bias, head, query[:, None], key[None, :], q_region[:, None], k_region[None, :],
            q_there[:, None], k_there[None, :], FRAMES, ROWS, COLUMNS, SHIFTED, TABLE_DEPTH, MUTUAL,
        )  # fmt: skip
        weights = tl.exp(logits - log_total[:, None])
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dlogits = weights * (dweights - mean[:, None])
        dq = tl.dot(dlogits.to(k.dtype), k, dq, input_precision=PRECISION)
    _write(dqkv, dq * scale, place, head, 3 * CHANNELS, q_there, DEPTH, PADDED)


@triton.jit(do_not_specialize=["dout_stride", "frames", "height", "width"])
def _backward_keys(
    qkv,
    bias,
    dout,
    log_sum,
    delta,
    dqkv,
    dout_stride,
    frames,
    height,
    width,
    scale,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT_D: tl.constexpr,
    SHIFT_H: tl.constexpr,
    SHIFT_W: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    MUTUAL: tl.constexpr,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    TOKENS: tl.constexpr = FRAMES * ROWS * COLUMNS
    TILES: tl.constexpr = (TOKENS + TILE - 1) // TILE
    SHIFTED: tl.constexpr = SHIFT_D + SHIFT_H + SHIFT_W > 0
    CHANNELS: tl.constexpr = HEADS * DEPTH
    head = tl.program_id(0) % HEADS
    window = tl.program_id(0) // HEADS // TILES
    key = tl.program_id(0) // HEADS % TILES * TILE + tl.arange(0, TILE)
    k_there = key < TOKENS
    place, k_region = _places(
        window, key, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
        False,
    )  # fmt: skip
    k = _tile(qkv + CHANNELS, place, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
    v = _tile(qkv + 2 * CHANNELS, place, head, 3 * CHANNELS, k_there, DEPTH, PADDED)

    dk = tl.zeros((TILE, PADDED), tl.float32)
    dv = tl.zeros((TILE, PADDED), tl.float32)
    for first in range(0, TOKENS, TILE):
        query = first + tl.arange(0, TILE)
        q_there = query < TOKENS
        at, q_region = _places(
            window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
        do = _tile(dout, at, head, dout_stride, q_there, DEPTH, PADDED)
        if MUTUAL:
            at, _ = _places(
                window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H,
                SHIFT_W, True,
            )  # fmt: skip
        q = _tile(qkv, at, head, 3 * CHANNELS, q_there, DEPTH, PADDED)
        row = (window.to(tl.int64) * HEADS + head) * TOKENS + query
        log_total = tl.load(log_sum + row, mask=q_there, other=float("inf"))
        mean = tl.load(delta + row, mask=q_there, other=0.0)
        # Transposed: keys by queries.
        logits = tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale
        logits = _biased(
            logits, bias, head, query[None, :], key[:, None], q_region[None, :], k_region[:, None],
            q_there[None, :], k_there[:, None], FRAMES, ROWS, COLUMNS, SHIFTED, TABLE_DEPTH, MUTUAL,
        )  # fmt: skip
        weights = tl.exp(logits - log_total[None, :])
        dv = tl.dot(weights.to(do.dtype), do, dv, input_precision=PRECISION)
        dweights = tl.dot(v, tl.trans(do), input_precision=PRECISION)
        dlogits = weights * (dweights - mean[None, :])
        dk = tl.dot(dlogits.to(q.dtype), q, dk, input_precision=PRECISION)
    _write(dqkv + CHANNELS, dk * scale, place, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
    _write(dqkv + 2 * CHANNELS, dv, place, head, 3 * CHANNELS, k_there, DEPTH, PADDED)


@triton.jit(do_not_specialize=["dout_stride", "windows", "frames", "height", "width"])
def _backward_bias(
    qkv,
    bias,
    dout,
    log_sum,
    delta,
    partial,
    dout_stride,
    windows,
    frames,
    height,
    width,
    scale,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    SHIFT_D: tl.constexpr,
    SHIFT_H: tl.constexpr,
    SHIFT_W: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    MUTUAL: tl.constexpr,
    HEADS: tl.constexpr,
    DEPTH: tl.constexpr,
    PADDED: tl.constexpr,
    TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sum the gradients of a tile of logits over every window of a chunk."""
    TOKENS: tl.constexpr = FRAMES * ROWS * COLUMNS
    TILES: tl.constexpr = (TOKENS + TILE - 1) // TILE
    SHIFTED: tl.constexpr = SHIFT_D + SHIFT_H + SHIFT_W > 0
    CHANNELS: tl.constexpr = HEADS * DEPTH
    head = tl.program_id(0) % HEADS
    query = tl.program_id(0) // HEADS % TILES * TILE + tl.arange(0, TILE)
    key = tl.program_id(0) // HEADS // TILES * TILE + tl.arange(0, TILE)
    q_there, k_there = query < TOKENS, key < TOKENS

    dbias = tl.zeros((TILE, TILE), tl.float32)
    for window in range(tl.program_id(1), windows, tl.num_programs(1)):
        place, q_region = _places(
            window, query, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
        at, k_region = _places(
            window, key, frames, height, width, FRAMES, ROWS, COLUMNS, SHIFT_D, SHIFT_H, SHIFT_W,
            False,
        )  # fmt: skip
        q = _tile(qkv, place, head, 3 * CHANNELS, q_there, DEPTH, PADDED)
        k = _tile(qkv + CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        v = _tile(qkv + 2 * CHANNELS, at, head, 3 * CHANNELS, k_there, DEPTH, PADDED)
        do = _tile(dout, place, head, dout_stride, q_there, DEPTH, PADDED)
        row = (tl.cast(window, tl.int64) * HEADS + head) * TOKENS + query
        log_total = tl.load(log_sum + row, mask=q_there, other=float("inf"))
        mean = tl.load(delta + row, mask=q_there, other=0.0)
        logits = tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale
        logits = _biased(
            logits, bias, head, query[:, None], key[None, :], q_region[:, None], k_region[None, :],
            q_there[:, None], k_there[None, :], FRAMES, ROWS, COLUMNS, SHIFTED, TABLE_DEPTH, MUTUAL,
        )  # fmt: skip
        weights = tl.exp(logits - log_total[:, None])
        dweights = tl.dot(do, tl.trans(v), input_precision=PRECISION)
        dbias += weights * (dweights - mean[:, None])
    at = ((tl.program_id(1) * HEADS + head) * TOKENS + query[:, None]) * TOKENS + key[None, :]
    tl.store(partial + at, dbias, mask=q_there[:, None] & k_there[None, :])


@triton.jit(do_not_specialize=["chunks"])
def _sum_bias(
    partial,
    dtable,
    chunks,
    FRAMES: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TABLE_DEPTH: tl.constexpr,
    HEADS: tl.constexpr,
    TILE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum over chunks and over the pairs of tokens that share a row of the table."""
    TOKENS: tl.constexpr = FRAMES * ROWS * COLUMNS
    SIZE: tl.constexpr = (2 * TABLE_DEPTH - 1) * (2 * ROWS - 1) * (2 * COLUMNS - 1)
    head = tl.program_id(0) % HEADS
    row = tl.program_id(0) // HEADS * BLOCK + tl.arange(0, BLOCK)
    x = row % (2 * COLUMNS - 1) - (COLUMNS - 1)
    y = row // (2 * COLUMNS - 1) % (2 * ROWS - 1) - (ROWS - 1)
    z = row // ((2 * COLUMNS - 1) * (2 * ROWS - 1)) - (TABLE_DEPTH - 1)
    total = tl.zeros((BLOCK, TILE), tl.float32)
    for first in range(0, TOKENS, TILE):
        query = first + tl.arange(0, TILE)[None, :]
        key_x = query % COLUMNS - x[:, None]
        key_y = query // COLUMNS % ROWS - y[:, None]
        key_z = query // (COLUMNS * ROWS) - z[:, None]
        inside = (key_x >= 0) & (key_x < COLUMNS) & (key_y >= 0) & (key_y < ROWS)
        inside = inside & (key_z >= 0) & (key_z < FRAMES) & (query < TOKENS)
        at = query * TOKENS + (key_z * ROWS + key_y) * COLUMNS + key_x
        for chunk in range(chunks):
            here = partial + (chunk * HEADS + head) * (TOKENS * TOKENS)
            total += tl.load(here + at, mask=inside, other=0.0)
    tl.store(dtable + row * HEADS + head, tl.sum(total, axis=1), mask=row < SIZE)
