"""Mutual and self attention in windows that also shift in time, as in VRT (Liang et al. 2024).

B clips, D frames, H x W the tensor's own height and width, C channels; a window is (frames, rows,
columns) with n tokens, row-major with frames slowest. W windows are counted over all clips.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.graphs import cached_tensors
from fedvsr.models._prompts import prompted_attention
from fedvsr.models._recompute import Kept, recompute_plain
from fedvsr.models._triton import fused
from fedvsr.models._windows import SEPARATE, biased_attention, relative_position_index
from fedvsr.models.spec import Window


@dataclass(frozen=True, eq=False)
class WindowPlan:
    """How a feature map of one size is cut into windows.

    A cyclic shift brings distant tokens together only in the last window of a shifted axis, so
    there are at most eight different masks. The windows are ordered by mask, so that one bias
    serves many of them: a mask for each window would take hundreds of megabytes.
    """

    size: Window
    window: Window
    """The window, no longer than the feature map along any axis."""
    shift: Window
    padded: Window
    """The size, rounded up to whole windows."""
    order: Tensor | None
    """Positions of the windows (d, h, w order), sorted by their masks; None: not reordered."""
    inverse: Tensor | None
    groups: tuple[tuple[int, Tensor | None], ...]
    """For each mask: a clip's number of windows, and the mask (n, n), None if it is all zero."""

    def attend(
        self, attention: WindowAttention, x_BDHWC: Tensor, kept: Kept | None = None
    ) -> Tensor:
        """Apply attention inside windows of a feature map: `(B, D, H, W, C)` to the same."""
        if attention.prompt is not None or not fused(x_BDHWC):
            return self.join(attention(self.partition(x_BDHWC), self.groups, kept))
        x = attention.in_image(self.pad(x_BDHWC), self.window, self.shift)
        return x[:, : self.size[0], : self.size[1], : self.size[2]]

    def pad(self, x_BDHWC: Tensor) -> Tensor:
        """Add zeros at the end of each axis."""
        if self.padded == self.size:
            return x_BDHWC
        pads = [p - s for p, s in zip(self.padded, self.size, strict=True)]
        return F.pad(x_BDHWC, (0, 0, 0, pads[2], 0, pads[1], 0, pads[0]))

    def partition(self, x_BDHWC: Tensor) -> Tensor:
        """Pad at the end of each axis, shift, and cut: `(B * windows, n, C)`, ordered by mask."""
        batch, channels = x_BDHWC.shape[0], x_BDHWC.shape[-1]
        x_BDHWC = self.pad(x_BDHWC)
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


@cached_tensors(maxsize=64)
def window_plan(size: Window, window: Window, shift: Window, device: torch.device) -> WindowPlan:
    """The plan for a feature map `size`.

    An axis that is no longer than the window gets a single window without shift.
    """
    shift = _where(size, window, shift, (0, 0, 0))
    window = _where(size, window, window, size)
    padded = _three(math.ceil(s / w) * w for s, w in zip(size, window, strict=True))
    if not any(shift):
        return WindowPlan(
            size, window, shift, padded, None, None, ((_count(padded, window), None),)
        )
    # Per axis: whether a window is the last one, which holds both ends. In plain Python, because a
    # compiled graph can hold numbers that are known beforehand, and no numbers of a tensor.
    last = [
        [bool(s) and i == p // w - 1 for i in range(p // w)]
        for p, w, s in zip(padded, window, shift, strict=True)
    ]
    kinds = [*product(*last)]
    order = sorted(range(len(kinds)), key=kinds.__getitem__)
    inverse = sorted(range(len(kinds)), key=order.__getitem__)
    groups = tuple(
        (kinds.count(kind), _separation(window, shift, kind, device)) for kind in sorted(set(kinds))
    )
    ordered, back = (torch.tensor(numbers, device=device) for numbers in (order, inverse))
    return WindowPlan(size, window, shift, padded, ordered, back, groups)


def _separation(
    window: Window, shift: Window, last: Sequence[bool], device: torch.device
) -> Tensor | None:
    """Mask (n, n) of a window that is last along the axes for which `last` is true."""
    if not any(last):
        return None
    sides = [
        torch.arange(w) >= (w - s if at_end else w)
        for w, s, at_end in zip(window, shift, last, strict=True)
    ]
    region = (sides[0][:, None, None] * 4 + sides[1][:, None] * 2 + sides[2] * 1).flatten()
    split = region[:, None] != region
    return torch.zeros(split.shape).masked_fill(split, SEPARATE).to(device)


def _where(size: Window, window: Window, longer: Window, otherwise: Window) -> Window:
    return _three(
        a if s > w else b for s, w, a, b in zip(size, window, longer, otherwise, strict=True)
    )


def _three(values: Iterable[int]) -> Window:
    d, h, w = values
    return d, h, w


def _count(padded: Window, window: Window) -> int:
    return math.prod([p // w for p, w in zip(padded, window, strict=True)])


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
    """Self attention inside windows and, if `mutual`, between the two frames of each window.

    Args:
        channels: C, a multiple of `heads`, and of 4 if `mutual`.
        window: the largest window; of two frames if `mutual`.
        heads: attention heads.
        mutual: add the attention of each frame's queries to the other frame's keys and values.
    """

    relative_position_index: Tensor
    position_bias: Tensor
    prompt: nn.Parameter | None
    """Tokens `(t, C)` whose keys and values join those of every window; see `_prompts`."""

    def __init__(self, channels: int, window: Window, heads: int, mutual: bool) -> None:
        super().__init__()
        self.channels, self.heads = channels, heads
        self.register_parameter("prompt", None)
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

    def forward(
        self, x_WnC: Tensor, groups: tuple[tuple[int, Tensor | None], ...], kept: Kept | None = None
    ) -> Tensor:
        """Attend inside each window.

        Args:
            x_WnC: windows in runs of equal masks.
            groups: the lengths of the runs, up to a common factor, and their masks `(n, n)`.
            kept: see `recompute`.
        """
        windows, tokens, _ = x_WnC.shape
        factor = windows // sum(count for count, _ in groups)
        runs = [count * factor for count, _ in groups]
        masks = [mask for _, mask in groups]
        # A window shortened in time uses the leading block: time is the slowest of its axes.
        index = self.relative_position_index[:tokens, :tokens].flatten()
        bias = self.relative_position_bias_table[index].view(tokens, tokens, -1).permute(2, 0, 1)
        bias = bias.contiguous()
        parts = torch.split(self.qkv_self(x_WnC), runs)
        prompt = None if self.prompt is None else self.qkv_self(self.prompt)
        attended = _joined(
            [
                biased_attention(part, bias if mask is None else bias + mask, kept, prompt)
                for part, mask in zip(parts, masks, strict=True)
            ]
        )
        if self.mutual:
            attended = torch.cat((self._attend_mutually(x_WnC, runs, masks), attended), dim=-1)
        out: Tensor = self.proj(attended)
        return out

    def in_image(self, x_BDHWC: Tensor, window: Window, shift: Window) -> Tensor:
        """`forward` for tokens in image order, `(B, D, H, W, C)` to the same, on a GPU.

        Args:
            x_BDHWC: whole windows along every axis.
            window: the window, perhaps shortened in time.
            shift: the shift of the windows.
        """
        from fedvsr.models._windows_triton import mutual_attention, window_attention

        attended = window_attention(
            self.qkv_self(x_BDHWC), self.relative_position_bias_table, window, shift
        )
        if self.mutual:
            # Windows repeat: moving one is moving all.
            place = self.position_bias.view(*window[1:], -1).roll(shift[1:], (0, 1))
            batch, frames, height, width, channels = x_BDHWC.shape
            rows, columns = height // window[1], width // window[2]
            cells = x_BDHWC.reshape(batch, frames, rows, window[1], columns, window[2], channels)
            qkv = self.qkv_mut((cells + place[:, None]).view_as(x_BDHWC))
            attended = torch.cat(
                (mutual_attention(qkv, self.heads, window, shift), attended), dim=-1
            )
        out: Tensor = self.proj(attended)
        return out

    def _attend_mutually(
        self, x_WnC: Tensor, runs: list[int], masks: list[Tensor | None]
    ) -> Tensor:
        windows, tokens, channels = x_WnC.shape
        half = tokens // 2
        qkv = self.qkv_mut(x_WnC + self.position_bias.repeat(1, 2, 1))
        q, k, v = qkv.view(2 * windows, half, 3, self.heads, -1).transpose(1, 3).unbind(2)
        # The queries of the second frame come first: their results take the first frame's place.
        q = q.view(windows, 2, *q.shape[1:]).flip(1).flatten(0, 1)
        frames = [2 * run for run in runs]
        # Within a frame, only the shift in space separates tokens.
        spatial = [None if mask is None else mask[:half, :half].to(qkv.dtype) for mask in masks]
        prompt = None if self.prompt is None else self.qkv_mut(self.prompt)
        attended = [
            _attend(q_run, k_run, v_run, mask, prompt).transpose(1, 2)
            for q_run, k_run, v_run, mask in zip(
                q.split(frames), k.split(frames), v.split(frames), spatial, strict=True
            )
        ]
        return _joined(attended).reshape(windows, tokens, channels)


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, prompt: Tensor | None) -> Tensor:
    if prompt is not None:
        return prompted_attention((q, k, v), mask, prompt)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if len(parts) > 1 else parts[0]


class GatedMlp(nn.Module):
    """`fc2(GELU(fc11(x)) * fc12(x))` on the last axis.

    Args:
        inputs: channels of the input.
        hidden: channels of both hidden layers.
        outputs: channels of the output.
        lean: recompute the gated product in the backward pass; it is cheap to compute.
    """

    def __init__(self, inputs: int, hidden: int, outputs: int, lean: bool = False) -> None:
        super().__init__()
        self.lean = lean
        self.fc11 = nn.Linear(inputs, hidden)
        self.fc12 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., inputs)` to `(..., outputs)`."""
        passed, factor = self.fc11(x), self.fc12(x)
        return (
            recompute_plain(self._gate, passed, factor) if self.lean else self._gate(passed, factor)
        )

    def _gate(self, passed: Tensor, factor: Tensor) -> Tensor:
        out: Tensor = self.fc2(F.gelu(passed) * factor)
        return out
