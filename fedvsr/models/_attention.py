"""Attention inside windows of frames, rows and columns, as VRT uses it (Liang et al. 2024).

B clips, D frames, H x W the tensor's own height and width, C channels; a window is (frames, rows,
columns) with n tokens, row-major with frames slowest. W windows are counted over all clips.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._recompute import run

Sizes = tuple[int, int, int]
"""Of frames, rows and columns."""

# Added to the logits of pairs that a cyclic shift brought together.
_SEPARATE = -100.0
# The backward pass of attention on a CPU works on logits of about this many elements at a time, so
# that they stay in the cache.
_CHUNK_LOGITS = 2**19


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """How a feature map of one size is cut into windows.

    A cyclic shift brings strangers together only in the last window of a shifted axis, so there are
    at most eight different masks. The windows are ordered by mask, which lets one bias serve many
    of them: a mask for each window would take hundreds of megabytes.
    """

    size: Sizes
    window: Sizes
    """The window, on short axes cut down to their size."""
    shift: Sizes
    padded: Sizes
    """The size, rounded up to whole windows."""
    order: Tensor | None
    """Positions (d, h, w order) of the windows in the order of their masks; None: as they are."""
    inverse: Tensor | None
    groups: tuple[tuple[int, Tensor | None], ...]
    """For each mask the number of windows of a clip, and the mask (n, n), None where all zero."""

    def partition(self, x_BDHWC: Tensor) -> Tensor:
        """Pad at the end of each axis, shift, and cut: `(B * windows, n, C)`, ordered by mask."""
        batch, channels = x_BDHWC.shape[0], x_BDHWC.shape[-1]
        if self.padded != self.size:
            pads = [p - s for p, s in zip(self.padded, self.size, strict=True)]
            x_BDHWC = F.pad(x_BDHWC, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))
        if any(self.shift):
            x_BDHWC = torch.roll(x_BDHWC, [-s for s in self.shift], dims=(1, 2, 3))
        (d, wd), (h, wh), (w, ww) = self._cells()
        cells = x_BDHWC.view(batch, d, wd, h, wh, w, ww, channels)
        windows = cells.permute(1, 3, 5, 0, 2, 4, 6, 7).reshape(d * h * w, batch, -1, channels)
        if self.order is not None:
            windows = windows.index_select(0, self.order)
        return windows.flatten(0, 1)

    def join(self, windows_WnC: Tensor) -> Tensor:
        """The inverse of `partition`: `(B, D, H, W, C)`."""
        channels = windows_WnC.shape[-1]
        (d, wd), (h, wh), (w, ww) = self._cells()
        windows = windows_WnC.view(d * h * w, -1, wd * wh * ww, channels)
        batch = windows.shape[1]
        if self.inverse is not None:
            windows = windows.index_select(0, self.inverse)
        cells = windows.view(d, h, w, batch, wd, wh, ww, channels)
        x = cells.permute(3, 0, 4, 1, 5, 2, 6, 7).reshape(batch, *self.padded, channels)
        if any(self.shift):
            x = torch.roll(x, self.shift, dims=(1, 2, 3))
        if self.padded != self.size:
            x = x[:, : self.size[0], : self.size[1], : self.size[2]]
        return x

    def _cells(self) -> list[tuple[int, int]]:
        return [(p // w, w) for p, w in zip(self.padded, self.window, strict=True)]


@lru_cache(maxsize=64)
def window_plan(size: Sizes, window: Sizes, shift: Sizes, device: torch.device) -> WindowPlan:
    """The plan for a feature map `size`; axes no longer than the window get one, unshifted."""
    shift = _where(size, window, shift, (0, 0, 0))
    window = _where(size, window, window, size)
    padded = _sizes(math.ceil(s / w) * w for s, w in zip(size, window, strict=True))
    if not any(shift):
        return WindowPlan(
            size, window, shift, padded, None, None, ((_count(padded, window), None),)
        )
    # The plan outlives the call: tensors made in inference mode could not be trained with later.
    with torch.inference_mode(False):
        # Per axis: is a window the last one, that holds both ends?
        last = [
            torch.arange(p // w) == (p // w - 1 if s else -1)
            for p, w, s in zip(padded, window, shift, strict=True)
        ]
        kind = last[0][:, None, None] * 4 + last[1][:, None] * 2 + last[2] * 1
        kinds, order = torch.sort(kind.flatten(), stable=True)
        found, counts = torch.unique_consecutive(kinds, return_counts=True)
        groups = tuple(
            (count, _separation(window, shift, (value & 4, value & 2, value & 1), device))
            for value, count in zip(found.tolist(), counts.tolist(), strict=True)
        )
        inverse = torch.argsort(order)
        return WindowPlan(size, window, shift, padded, order.to(device), inverse.to(device), groups)


def _separation(window: Sizes, shift: Sizes, last: Sizes, device: torch.device) -> Tensor | None:
    """Mask (n, n) of a window that is the last one along the axes where `last` is not 0."""
    if not any(last):
        return None
    sides = [
        torch.arange(w) >= (w - s if at_end else w)
        for w, s, at_end in zip(window, shift, last, strict=True)
    ]
    region = (sides[0][:, None, None] * 4 + sides[1][:, None] * 2 + sides[2] * 1).flatten()
    apart = region[:, None] != region
    return torch.zeros(apart.shape).masked_fill(apart, _SEPARATE).to(device)


def _where(size: Sizes, window: Sizes, longer: Sizes, otherwise: Sizes) -> Sizes:
    return _sizes(
        a if s > w else b for s, w, a, b in zip(size, window, longer, otherwise, strict=True)
    )


def _sizes(values: Any) -> Sizes:
    d, h, w = values
    return d, h, w


def _count(padded: Sizes, window: Sizes) -> int:
    return math.prod(p // w for p, w in zip(padded, window, strict=True))


def relative_position_index(window: Sizes) -> Tensor:
    """Rows of the bias table for each pair of a query (first axis) and a key, int64 `(n, n)`."""
    tokens = torch.tensor(list(itertools.product(*map(range, window))))
    d, h, w = (tokens[:, None] - tokens + torch.tensor(window) - 1).unbind(-1)
    return (d * (2 * window[1] - 1) + h) * (2 * window[2] - 1) + w


def sine_position(channels: int, rows: int, columns: int) -> Tensor:
    """Sine encoding of the positions of a frame's window, `(1, rows * columns, channels)`.

    The first half of the channels encodes the row, the second the column, both counted from 1.
    """
    features = channels // 2
    exponent = 2 * torch.div(torch.arange(features), 2, rounding_mode="floor") / features
    halves = []
    for count in (rows, columns):
        angle = torch.arange(1, count + 1) * 2 * math.pi / (count + 1e-6)
        turned = angle[:, None] / 10000**exponent
        even = torch.arange(features) % 2 == 0
        halves.append(torch.where(even, turned.sin(), turned.cos()))
    y = halves[0][:, None].expand(-1, columns, -1)
    x = halves[1].expand(rows, -1, -1)
    return torch.cat((y, x), dim=-1).reshape(1, rows * columns, channels)


class WindowAttention(nn.Module):
    """Self attention inside windows and, if `mutual`, between the two frames of a window.

    Args:
        channels: C, a multiple of `heads`, and of 4 if `mutual`.
        window: the largest window; of two frames if `mutual`.
        heads: attention heads.
        mutual: add the attention of each frame's queries to the other frame's keys and values.
    """

    relative_position_index: Tensor
    position_bias: Tensor

    def __init__(self, channels: int, window: Sizes, heads: int, mutual: bool) -> None:
        super().__init__()
        self.heads = heads
        self.mutual = mutual
        rows = math.prod(2 * size - 1 for size in window)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(rows, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("relative_position_index", relative_position_index(window))
        if mutual:
            self.register_buffer("position_bias", sine_position(channels, *window[1:]))
        self.qkv_self = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(2 * channels if mutual else channels, channels)
        if mutual:
            self.qkv_mut = nn.Linear(channels, 3 * channels)

    def forward(self, x_WnC: Tensor, groups: tuple[tuple[int, Tensor | None], ...]) -> Tensor:
        """Attend inside each window.

        Args:
            x_WnC: windows in runs of equal masks.
            groups: the lengths of the runs, up to a common factor, and their masks `(n, n)`.
        """
        windows, tokens, channels = x_WnC.shape
        factor = windows // sum(count for count, _ in groups)
        runs = [count * factor for count, _ in groups]
        masks = [mask for _, mask in groups]
        # A window cut short in time uses the leading block: time is the slowest of its axes.
        index = self.relative_position_index[:tokens, :tokens]
        bias = self.relative_position_bias_table[index.flatten()].T.view(1, -1, tokens, tokens)
        qkv = self.qkv_self(x_WnC).view(windows, tokens, 3, self.heads, -1)
        biases = [bias if mask is None else bias + mask for mask in masks]
        attended = _by_runs(qkv, runs, list(biases)).flatten(2)
        if self.mutual:
            attended = torch.cat((self._attend_mutually(x_WnC, runs, masks), attended), dim=-1)
        out: Tensor = self.proj(attended)
        return out.view(windows, tokens, channels)

    def _attend_mutually(
        self, x_WnC: Tensor, runs: list[int], masks: list[Tensor | None]
    ) -> Tensor:
        windows, tokens, _ = x_WnC.shape
        half = tokens // 2
        qkv = self.qkv_mut(x_WnC + self.position_bias.repeat(1, 2, 1))
        q, k, v = qkv.view(windows, 2, half, 3, self.heads, -1).unbind(3)
        # The queries of the second frame come first: their results take the first frame's place.
        crossed = torch.stack((q.flip(1), k, v), dim=3).flatten(0, 1)
        # Within a frame only the shift in space separates.
        spatial = [None if mask is None else mask[None, None, :half, :half] for mask in masks]
        attended = _by_runs(crossed, [2 * run for run in runs], spatial)
        return attended.reshape(windows, tokens, -1)


def _by_runs(qkv: Tensor, runs: list[int], biases: list[Tensor | None]) -> Tensor:
    parts = torch.split(qkv, runs) if len(runs) > 1 else (qkv,)
    attended = [attend(part, bias) for part, bias in zip(parts, biases, strict=True)]
    return torch.cat(attended) if len(attended) > 1 else attended[0]


def attend(qkv: Tensor, bias: Tensor | None) -> Tensor:
    """Attention of packed queries, keys and values `(W, n, 3, heads, C / heads)`.

    Args:
        qkv: the packed tensor.
        bias: added to the logits, broadcast to `(W, heads, n, n)`.

    Returns:
        `(W, n, heads, C / heads)`.
    """
    if bias is not None:
        bias = bias.to(qkv.dtype)
        trained = bias.requires_grad and torch.is_grad_enabled()
        if trained and qkv.device.type == "cpu" and not torch.compiler.is_compiling():
            out: Tensor = _TrainedBiasAttention.apply(qkv, bias)
            return out
    return _attend(qkv, bias)


def _attend(qkv: Tensor, bias: Tensor | None) -> Tensor:
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)


class _TrainedBiasAttention(torch.autograd.Function):
    """`_attend` for a bias `(1, heads, n, n)` that is trained, on a CPU.

    There PyTorch's fused attention gives no gradient to the bias, and the unfused one keeps all
    logits. This runs the fused one forward and computes the logits anew backward, few at a time.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor) -> Tensor:
        # Detached: the choice of the unfused attention goes by `requires_grad` alone.
        out = _attend(qkv, bias.detach())
        ctx.save_for_backward(qkv, bias, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor]:
        qkv, bias, out = ctx.saved_tensors
        tokens, heads, width = qkv.shape[1], qkv.shape[3], qkv.shape[4]
        grad_qkv, grad_bias = torch.empty_like(qkv), torch.zeros_like(bias[0], dtype=torch.float32)
        step = max(1, _CHUNK_LOGITS // (heads * tokens**2))
        for i in range(0, len(qkv), step):
            part = slice(i, i + step)
            # (heads of windows, n, width), float32 as inside the fused attention.
            q, k, v = qkv[part].permute(2, 0, 3, 1, 4).float().reshape(3, -1, tokens, width)
            pulled = grad_out[part].transpose(1, 2).float().reshape_as(q)
            attended = out[part].transpose(1, 2).float().reshape_as(q)
            q = q * width**-0.5
            logits = torch.bmm(q, k.mT).view(-1, heads, tokens, tokens).add_(bias)
            weights = torch.softmax(logits, dim=-1).flatten(0, 1)
            # Derivative of the softmax: the weights times what exceeds their mean pull.
            mean_pull = (pulled * attended).sum(dim=-1, keepdim=True)
            grad_logits = torch.bmm(pulled, v.mT).sub_(mean_pull).mul_(weights)
            grad_bias += grad_logits.view_as(logits).sum(dim=0)
            grad_q = torch.bmm(grad_logits, k).mul_(width**-0.5)
            grads = (grad_q, torch.bmm(grad_logits.mT, q), torch.bmm(weights.mT, pulled))
            for j, grad in enumerate(grads):
                grad_qkv[part, :, j] = grad.view(-1, heads, tokens, width).transpose(1, 2)
        return grad_qkv, grad_bias[None].to(bias.dtype)


class GatedMlp(nn.Module):
    """`fc2(GELU(fc11(x)) * fc12(x))` on the last axis.

    Args:
        inputs: channels of the input.
        hidden: channels of both hidden layers.
        outputs: channels of the output.
        recompute: keep no gated product for the backward pass, which is cheap to compute anew.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, recompute: bool = False) -> None:
        super().__init__()
        self.recompute = recompute
        self.fc11 = nn.Linear(inputs, hidden)
        self.fc12 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        return run(self._gate, self.recompute, self.fc11(x), self.fc12(x))

    def _gate(self, passed: Tensor, factor: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(passed) * factor)
        return out
