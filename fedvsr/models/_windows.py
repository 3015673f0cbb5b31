"""Attention in shifted windows (Swin, Liu et al. 2021) over short stacks of frames.

G stacks of D frames, H x W pixels, C channels last; M windows of n = D * wh * ww tokens; h heads. A
window spans its whole stack, so shifts move it over rows and columns only.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from fedvsr.graphs import cached_tensors
from fedvsr.models._norm import LayerNorm
from fedvsr.models._prompts import prompted_attention
from fedvsr.models._recompute import Kept, recompute, recompute_plain
from fedvsr.models._recurrence import with_present_parameters
from fedvsr.models._triton import constant_in_graphs, fused
from fedvsr.models.spec import Checkpointing, Window

# Logits computed at once in the backward pass on a CPU; two arrays of this size fit in the caches.
_CHUNK_LOGITS = 2**19
# For each of a layer's two residual branches, the samples that keep it; None: all.
Paths = tuple[Tensor | None, Tensor | None]
# Added to the logits of two tokens that a cyclic shift brought together.
SEPARATE = -100.0


class SwinLayer(nn.Module):
    """Window attention, then an MLP, each behind a LayerNorm and a residual connection.

    Args:
        dim: channels C.
        window: depth, height and width; the depth is that of the stacks.
        heads: attention heads; a divisor of `dim`.
        mlp_ratio: hidden channels of the MLP over `dim`.
        shifted: whether windows are moved by half their height and width, with wrap-around.
        qkv_name: name of the attention's joint projection, which differs between networks.
        drop_path: probability to skip a branch of a stack, in training.
        checkpointing: what the backward pass recomputes.
    """

    def __init__(
        self,
        dim: int,
        window: Window,
        heads: int,
        mlp_ratio: float,
        shifted: bool,
        qkv_name: str = "qkv",
        drop_path: float = 0.0,
        checkpointing: Checkpointing = "none",
    ) -> None:
        super().__init__()
        self.window = window
        self.shift = (window[1] // 2, window[2] // 2) if shifted else (0, 0)
        self.drop_path = drop_path
        self.checkpointing = checkpointing
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, window, heads, qkv_name)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, x_GDHWC: Tensor, paths: Paths, kept: Kept | None = None) -> Tensor:
        """`(G, D, H, W, C)` to the same.

        H and W may be any: windows are padded with zeros after the LayerNorm.

        Args:
            x_GDHWC: the input.
            paths: see `draw_paths`.
            kept: see `recompute`.
        """
        if self.checkpointing == "attention":
            attended = recompute(with_present_parameters(self._attend, self), x_GDHWC)
        else:
            attended = self._attend(x_GDHWC, kept)
        x = add_branch(x_GDHWC, attended, self.drop_path, paths[0])
        hidden = self.mlp.fc1(self.norm2(x))
        if self.checkpointing == "blocks":
            # The whole block is recomputed already.
            return add_branch(x, self.mlp.rest(hidden), self.drop_path, paths[1])
        # The GELU is cheap to recompute and wide to keep. Its second call gets the weights of the
        # first: `recurrence` has replaced the layer's own, and converted them for autocast.
        fc2 = self.mlp.fc2
        residual = recompute_plain(_activate, hidden, fc2.weight, fc2.bias)
        return add_branch(x, residual, self.drop_path, paths[1])

    def _attend(self, x: Tensor, kept: Kept | None = None) -> Tensor:
        stacks, depth, height, width, channels = x.shape
        _, wh, ww = self.window
        x = self.norm1(x)
        rows, columns = -(-height // wh), -(-width // ww)
        padded = (rows * wh - height, columns * ww - width)
        if any(padded):
            x = F.pad(x, (0, 0, 0, padded[1], 0, padded[0]))
        if fused(x) and self.attn.prompt is None:
            return self.attn.in_image(x, self.window, (0, *self.shift))[:, :, :height, :width]
        masks: Tensor | None = None
        if any(self.shift):
            x = x.roll((-self.shift[0], -self.shift[1]), (2, 3))
            masks = shift_masks(self.window, self.shift, x.device)
        x = x.view(stacks, depth, rows, wh, columns, ww, channels)
        x = x.permute(0, 2, 4, 1, 3, 5, 6).flatten(3, 5)
        x = self.attn(x, masks, kept)
        x = x.view(stacks, rows, columns, depth, wh, ww, channels).permute(0, 3, 1, 4, 2, 5, 6)
        x = x.reshape(stacks, depth, rows * wh, columns * ww, channels)
        if any(self.shift):
            x = x.roll(self.shift, (2, 3))
        return x[:, :, :height, :width]


def draw_paths(x: Tensor, rates: Sequence[float], training: bool) -> list[Paths]:
    """Choose the samples that keep each residual branch of layers, for `add_branch`.

    A function that the backward pass calls again must not draw: its second call would have to
    restore the state of the generator, which no CUDA graph can.

    Args:
        x: the input, samples along the first axis.
        rates: probability to drop a sample's branch, for each layer.
        training: whether the network trains.

    Returns:
        Twice per layer, 1 for samples that keep the branch and 0 for others, in the shape of `x`
        but for lengths of 1; None if all keep it. On a GPU the numbers are divided by the
        probability to keep, as `add_branch` does elsewhere.
    """
    shape = (len(x), *(1,) * (x.dim() - 1))
    if not training or not any(rates):
        return [(None, None)] * len(rates)
    if not x.is_cpu:
        # One draw for all layers, already scaled.
        keep = _keep_rates(tuple(rates), x.device).view(-1, 1, *shape[1:], 1)
        drawn = torch.rand(len(rates), 2, *shape, device=x.device)
        kept = (drawn < keep) / keep
        return [(first, second) for first, second in kept.unbind()]

    def draw(rate: float) -> Tensor | None:
        return x.new_empty(shape).bernoulli_(1.0 - rate) if rate > 0 else None

    return [(draw(rate), draw(rate)) for rate in rates]


@cached_tensors(maxsize=64)
def _keep_rates(rates: Sequence[float], device: torch.device) -> Tensor:
    return 1.0 - torch.tensor(rates, device=device)


def add_branch(x: Tensor, branch: Tensor, rate: float, kept: Tensor | None) -> Tensor:
    """Add a residual branch, zero for some samples and scaled up for the others.

    Args:
        x: the input of the branch.
        branch: its output.
        rate: probability to zero a sample.
        kept: see `draw_paths`; None adds `branch` as it is.
    """
    if kept is None:
        return x + branch
    if not x.is_cpu:
        added: Tensor = _AddScaled.apply(x, branch, kept)
        return added
    return x + branch * (kept.to(branch.dtype) / (1.0 - rate))


class _AddScaled(torch.autograd.Function):
    """`x + branch * scale` in one operation each way; `torch.addcmul` takes two backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, branch: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        ctx.dtypes = x.dtype, branch.dtype
        return torch.addcmul(x, branch, scale)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x_dtype, branch_dtype = ctx.dtypes
        return grad.to(x_dtype), (grad * ctx.saved_tensors[0]).to(branch_dtype), None


class SwinLayers(nn.Sequential):
    """A sequence of layers: what `checkpointing` calls a block."""

    def __init__(self, layers: Sequence[SwinLayer]) -> None:
        super().__init__(*layers)
        self.whole = any(layer.checkpointing == "blocks" for layer in layers)
        self.drop_rates = [layer.drop_path for layer in layers]

    def forward(self, x_GDHWC: Tensor) -> Tensor:
        """`(G, D, H, W, C)` to the same."""
        paths = draw_paths(x_GDHWC, self.drop_rates, self.training)
        if self.whole:
            run = with_present_parameters(partial(self._run, paths), self)
            return recompute(run, x_GDHWC)
        return self._run(paths, x_GDHWC)

    def _run(self, paths: list[Paths], x: Tensor, kept: Kept | None = None) -> Tensor:
        for layer, path in zip(self, paths, strict=True):
            x = layer(x, path, kept)
        return x


class WindowAttention(nn.Module):
    """Self-attention inside windows, with a learned bias for each relative position."""

    relative_position_index: Tensor
    prompt: nn.Parameter | None
    """Tokens `(t, C)` whose keys and values join those of every window; see `_prompts`."""

    def __init__(self, dim: int, window: Window, heads: int, qkv_name: str = "qkv") -> None:
        super().__init__()
        self.channels, self.heads = dim, heads
        self.register_parameter("prompt", None)
        self.qkv_name = qkv_name
        positions = (2 * window[0] - 1) * (2 * window[1] - 1) * (2 * window[2] - 1)
        self.relative_position_bias_table = nn.Parameter(torch.zeros(positions, heads))
        self.register_buffer("relative_position_index", relative_position_index(window))
        self.add_module(qkv_name, nn.Linear(dim, 3 * dim))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, masks: Tensor | None = None, kept: Kept | None = None) -> Tensor:
        """Attend within windows.

        Args:
            x: windows by row and column, `(G, rows, columns, n, C)`.
            masks: added to the logits, `(4, n, n)`: for windows in neither the last row nor the
                last column, in the last column, in the last row, and in both.
            kept: see `recompute`.
        """
        tokens = x.shape[3]
        index = self.relative_position_index.flatten()
        bias = self.relative_position_bias_table[index].view(tokens, tokens, -1).permute(2, 0, 1)
        project = self.get_submodule(self.qkv_name)
        qkv, prompt = project(x), None if self.prompt is None else project(self.prompt)
        if masks is None:
            attended = biased_attention(qkv.flatten(0, 2), bias.contiguous(), kept, prompt)
            attended = attended.view_as(x)
        else:
            attended = _edgewise(qkv, bias, masks, kept, prompt)
        out_GRCnC: Tensor = self.proj(attended)
        return out_GRCnC

    def in_image(self, x_GDHWC: Tensor, window: Window, shift: Window) -> Tensor:
        """`forward` for tokens in image order, `(G, D, H, W, C)` to the same, on a GPU."""
        from fedvsr.models._windows_triton import window_attention

        qkv = self.get_submodule(self.qkv_name)(x_GDHWC)
        attended = window_attention(qkv, self.relative_position_bias_table, window, shift)
        out_GDHWC: Tensor = self.proj(attended)
        return out_GDHWC


def _edgewise(
    qkv_GRCn: Tensor, bias: Tensor, masks: Tensor, kept: Kept | None, prompt: Tensor | None
) -> Tensor:
    """Attention of shifted windows; only the last row and column contain the wrap-around."""
    bands = []
    for band, band_masks in zip(_split_last(qkv_GRCn, 1), torch.split(masks, 2), strict=True):
        parts = [
            biased_attention(part.flatten(0, 2), bias + mask, kept, prompt).view(
                *part.shape[:-1], -1
            )
            for part, mask in zip(_split_last(band, 2), band_masks, strict=True)
            if part.numel()
        ]
        bands += [torch.cat(parts, dim=2)] if parts else []
    return torch.cat(bands, dim=1)


def _split_last(x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    inner, last = torch.tensor_split(x, [x.shape[dim] - 1], dim)
    return inner, last


class Mlp(nn.Module):
    """Two linear layers around a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        """`(..., dim)` to the same."""
        return self.rest(self.fc1(x))

    def rest(self, hidden: Tensor) -> Tensor:
        """The GELU and the second layer."""
        return _activate(hidden, self.fc2.weight, self.fc2.bias)


def _activate(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(F.gelu(hidden), weight, bias)


def biased_attention(
    qkv_MnC: Tensor, bias_hnn: Tensor, kept: Kept | None = None, prompt: Tensor | None = None
) -> Tensor:
    """Softmax attention with a bias on the logits.

    Args:
        qkv_MnC: queries, keys and values side by side, `(M, n, 3C)`.
        bias_hnn: one matrix per head, for all windows.
        kept: see `recompute`.
        prompt: queries, which are not used, keys and values of tokens that all windows see,
            `(t, 3C)`.

    Returns:
        `(M, n, C)`, heads side by side.
    """
    if prompt is not None:
        q, k, v = _split_heads(qkv_MnC, len(bias_hnn)).transpose(1, 3).unbind(2)
        return prompted_attention((q, k, v), bias_hnn, prompt).transpose(1, 2).flatten(2)
    if not (qkv_MnC.is_cpu and bias_hnn.requires_grad):
        return _attention(qkv_MnC, bias_hnn)
    out: Tensor = _BiasedAttention.apply(qkv_MnC, bias_hnn, kept.next() if kept else None)
    if kept and not kept.complete:
        kept.outputs.append(out.detach())
    return out


def _attention(qkv: Tensor, bias: Tensor) -> Tensor:
    q, k, v = _split_heads(qkv, len(bias)).unbind(2)
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.to(q.dtype)[None])
    return out.transpose(1, 2).flatten(2)


def _split_heads(qkv: Tensor, heads: int) -> Tensor:
    return qkv.view(*qkv.shape[:2], 3, heads, -1)


class _BiasedAttention(torch.autograd.Function):
    """Fused attention with a learned bias, on CPUs.

    If the bias needs a gradient, PyTorch falls back from its fused CPU kernel to one that keeps all
    logits. Here the backward pass recomputes them, in chunks that fit in the caches.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, bias: Tensor, out: Tensor | None) -> Tensor:
        out = _attention(qkv, bias.detach()) if out is None else out.view_as(out)
        ctx.save_for_backward(qkv, bias, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor, Tensor, None]:
        qkv, bias, out = ctx.saved_tensors
        (windows, tokens, _), heads = qkv.shape, len(bias)
        # Heads before windows: one bias serves a run of windows, and every matrix is whole.
        q, k, v = _by_head(qkv, 3 * heads).chunk(3)
        grad, o = _by_head(grad_out, heads), _by_head(out, heads)
        scale = q.shape[-1] ** -0.5
        q = q * scale
        inner = (grad * o).sum(-1, keepdim=True)
        grads = qkv.new_empty((3, *q.shape), dtype=torch.float32)
        grad_bias = torch.zeros_like(bias, dtype=torch.float32)
        step = min(windows, max(1, _CHUNK_LOGITS // tokens**2))
        # Allocated once: the system would map memory of this size again for every chunk.
        buffers = qkv.new_empty((2, step, tokens, tokens), dtype=torch.float32)
        with torch.autocast("cpu", enabled=False):
            for head in range(heads):
                for begin in range(0, windows, step):
                    part = (head, slice(begin, begin + step))
                    weights, grad_logits = buffers[:, : windows - begin]
                    torch.bmm(q[part], k[part].transpose(1, 2), out=weights)
                    torch.softmax(weights.add_(bias[head]), -1, out=weights)
                    torch.bmm(grad[part], v[part].transpose(1, 2), out=grad_logits)
                    grad_logits.sub_(inner[part]).mul_(weights)
                    grad_bias[head] += grad_logits.sum(0)
                    torch.bmm(grad_logits, k[part], out=grads[0][part])
                    torch.bmm(grad_logits.transpose(1, 2), q[part], out=grads[1][part])
                    torch.bmm(weights.transpose(1, 2), grad[part], out=grads[2][part])
        grads[0].mul_(scale)
        grad_qkv = grads.permute(2, 3, 0, 1, 4).reshape(qkv.shape)
        return grad_qkv.to(qkv.dtype), grad_bias.to(bias.dtype), None


def _by_head(x_MnC: Tensor, heads: int) -> Tensor:
    """Float32 `(heads, M, n, C / heads)`, contiguous."""
    parts = torch.unflatten(x_MnC, -1, (heads, -1)).permute(2, 0, 1, 3)
    return parts.float().contiguous()


def relative_position_index(window: Window) -> Tensor:
    """The row of the bias table for query i and key j: `(n, n)`, int64."""
    axes = torch.meshgrid(*(torch.arange(side) for side in window), indexing="ij")
    places = torch.stack(axes).flatten(1)
    offsets = places[:, :, None] - places[:, None, :]
    index = torch.zeros_like(offsets[0])
    for offset, side in zip(offsets, window, strict=True):
        index = index * (2 * side - 1) + offset + side - 1
    return index


@constant_in_graphs
@cached_tensors(maxsize=16)
def shift_masks(window: Window, shift: Sequence[int], device: torch.device) -> Tensor:
    """Masks of shifted windows, in the order of `WindowAttention.forward`: 0 or `SEPARATE`.

    The last `shift` rows or columns of a window at the far edge are wrapped around from the near
    edge.
    """
    depth, height, width = window
    wrapped_rows = torch.arange(height, device=device) >= height - shift[0]
    wrapped_columns = torch.arange(width, device=device) >= width - shift[1]
    rows = wrapped_rows[:, None].expand(depth, height, width).flatten()
    columns = wrapped_columns.expand(depth, height, width).flatten()
    split_rows = rows[:, None] != rows
    split_columns = columns[:, None] != columns
    none = torch.zeros_like(split_rows)
    split = torch.stack((none, split_columns, split_rows, split_rows | split_columns))
    return torch.where(split, SEPARATE, 0.0)
