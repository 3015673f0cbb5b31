"""The network of IART (Xu et al. 2024), and its implicit alignment.

Four branches pass over the clip, backward and forward in turn. A step aligns the states of the two
steps before with an attention to the four pixels around where the flow points, and a small Swin
network merges them with the current frame.

B clips, T frames, C channels, H x W low-resolution pixels, N = H * W * B. Flows are (dx, dy) in
pixels.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._flow import SpyNet, compose
from fedvsr.models._frames import per_frame
from fedvsr.models._norm import LayerNorm
from fedvsr.models._recurrence import recurrence
from fedvsr.models._sampling import pixel_index
from fedvsr.models._start import start_on_edges
from fedvsr.models._windows import SwinLayer, SwinLayers, WindowAttention
from fedvsr.models.iart import Config, spec
from fedvsr.models.spec import Window

_BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")
# Channels after the first enlargement, and of the convolutions that exist only in checkpoints.
_WIDTH = 64
_TEMPERATURE = 0.01


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, 4H, 4W)`, not clamped."""

    compiled_layers = (WindowAttention,)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.spec = spec(config)
        self.cache_length = config.cpu_cache_length
        dim, mid = config.embed_dim, config.mid_channels
        self.conv_before_upsample = _conv(dim, mid)
        self.spynet = SpyNet()
        self.conv_first = _conv(3, dim)
        self.swin_backbone = nn.ModuleDict({branch: _Cell(config) for branch in _BRANCHES})
        self.upconv1 = _conv(mid, 4 * mid)
        self.upconv2 = _conv(mid, 4 * _WIDTH)
        self.conv_hr = _conv(_WIDTH, _WIDTH)
        self.conv_last = _conv(_WIDTH, 3)
        self.implicit_warp = ImplicitAlignment(dim, config.num_heads[0])
        if config.start == "edges":
            enlarging = (self.conv_before_upsample, self.upconv1, self.upconv2, self.conv_hr)
            bodies = (m.conv_after_body for m in self.modules() if isinstance(m, _Cell))
            start_on_edges(self.conv_first, enlarging, self.conv_last, bodies)

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips of any number of frames, at least 32 pixels a side.

        Raises:
            ValueError: the clips have another size.
        """
        self.spec.require_clip(lq_BTCHW, "iart")
        device, frames = lq_BTCHW.device, lq_BTCHW.shape[1]
        spare = frames > self.cache_length and not torch.is_grad_enabled()
        home = torch.device("cpu") if spare else device

        features = per_frame(self._extract, [lq_BTCHW], device, home)
        guides: dict[str, list[Tensor]] = {"backward": [], "forward": []}
        if frames > 1:
            (backward,), (forward,) = self.spynet.both_ways(lq_BTCHW)
            guides = {"backward": _guides(backward.flip(1)), "forward": _guides(forward)}
        for branch in _BRANCHES:
            way = branch.partition("_")[0]
            # A backward branch is a forward one on the clip played in reverse.
            reverse = way == "backward"
            played = features.flip(1) if reverse else features
            played = self._propagate(branch, played, guides[way], device, home)
            features = played.flip(1) if reverse else played
        return per_frame(self._reconstruct, [lq_BTCHW, features], device, device)

    def _extract(self, lq: Tensor) -> Tensor:
        features: Tensor = self.conv_first(lq.contiguous(memory_format=torch.channels_last))
        return features

    def _propagate(
        self,
        branch: str,
        features: Tensor,
        guides: list[Tensor],
        device: torch.device,
        home: torch.device,
    ) -> Tensor:
        """Run one branch over the clip, in its direction of play.

        Args:
            branch: the branch's name.
            features: features of the branch before it, `(B, T, C, H, W)`.
            guides: flows for each step from the second on.
            device: the device that computes.
            home: the device that keeps features.

        Returns:
            The branch's features.
        """
        cell, align = self.swin_backbone[branch], self.implicit_warp

        def step(now: Tensor, guide: Tensor | None, *memory: Tensor) -> tuple[Tensor, Tensor]:
            first = second = now
            if guide is not None:
                aligned = align(torch.cat(memory), now, guide)
                both = len(memory) > 1
                first, second = aligned.chunk(2) if both else (aligned, torch.zeros_like(now))
            state = cell(torch.stack((first, now, second), dim=1))
            return state, align.project(state)

        take_step = recurrence(step, cell, align)
        states: list[Tensor] = []
        # Keys and values of the last two states, the newest first.
        memory: list[Tensor] = []
        for i, feature in enumerate(features.unbind(1)):
            now = feature.to(device).permute(0, 2, 3, 1)
            state, projected = take_step(now, guides[i - 1] if i else None, *memory)
            memory = [projected, *memory[:1]]
            states.append(state.permute(0, 3, 1, 2).to(home))
        return torch.stack(states, dim=1)

    def _reconstruct(self, lq: Tensor, features: Tensor) -> Tensor:
        x = self.conv_before_upsample(features)
        for enlarge in (self.upconv1, self.upconv2):
            x = F.leaky_relu_(F.pixel_shuffle(enlarge(x), 2), 0.1)
        residual: Tensor = self.conv_last(F.leaky_relu_(self.conv_hr(x), 0.1))
        return residual + F.interpolate(lq, scale_factor=4, mode="bilinear", align_corners=False)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)


def _guides(flow_BT2HW: Tensor) -> list[Tensor]:
    """For each step, flows to the frame before and to the frame before that, joined on the batch.

    Args:
        flow_BT2HW: in order of play, from every frame but the first to the one before.
    """
    if flow_BT2HW.shape[1] == 1:
        return [flow_BT2HW[:, 0]]
    now, before = flow_BT2HW[:, 1:], flow_BT2HW[:, :-1]
    two_back = compose(now.flatten(0, 1), before.flatten(0, 1)).view_as(now)
    both = torch.cat((now, two_back))
    return [flow_BT2HW[:, 0], *both.unbind(1)]


class _Cell(nn.Module):
    """Merges the features of the current frame with two aligned states, one on each side of it.

    `conv_first`, `conv_first_feat` and `conv_before_upsample` are not used; released checkpoints
    contain them.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.embed_dim
        self.conv_first = _conv(3, dim)
        self.conv_first_feat = _conv(_WIDTH, dim)
        self.patch_embed = nn.ModuleDict({"norm": LayerNorm(dim)})
        drops = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        self.layers = nn.ModuleList()
        for depth, heads in zip(config.depths, config.num_heads, strict=True):
            self.layers.append(_Group(config, heads, drops[:depth]))
            drops = drops[depth:]
        self.norm = LayerNorm(dim)
        self.conv_after_body = _conv(dim, dim)
        self.conv_before_upsample = _conv(dim, _WIDTH)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x_B3HWC: Tensor) -> Tensor:
        """`(B, 3, H, W, C)` to `(B, H, W, C)`."""
        x = self.patch_embed["norm"](x_B3HWC)
        for group in self.layers[:-1]:
            x = x + group(x)
        # Only the current frame is needed of the last group.
        x = x[:, 1:2] + self.layers[-1](x, slice(1, 2))
        x = _frames_conv(self.conv_after_body, self.norm(x))
        return x[:, 0] + x_B3HWC[:, 1]


class _Group(nn.Module):
    """Attention layers, every second one shifted, and a convolution within frames."""

    def __init__(self, config: Config, heads: int, drops: list[float]) -> None:
        super().__init__()
        window: Window = config.window_size
        layers = [
            SwinLayer(
                config.embed_dim,
                window,
                heads,
                mlp_ratio=2.0,
                shifted=i % 2 == 1,
                drop_path=drop,
                checkpointing=config.checkpointing,
            )
            for i, drop in enumerate(drops)
        ]
        for layer in layers:
            nn.init.trunc_normal_(layer.attn.relative_position_bias_table, std=0.02)
        self.residual_group = nn.ModuleDict({"blocks": SwinLayers(layers)})
        self.conv = _conv(config.embed_dim, config.embed_dim)

    def forward(self, x_B3HWC: Tensor, frames: slice = slice(None)) -> Tensor:
        """The residual to add to some frames of `x`."""
        x = self.residual_group["blocks"](x_B3HWC)
        return _frames_conv(self.conv, x[:, frames])


def _frames_conv(conv: nn.Conv2d, x_BTHWC: Tensor) -> Tensor:
    batch = len(x_BTHWC)
    out: Tensor = conv(x_BTHWC.flatten(0, 1).permute(0, 3, 1, 2))
    return torch.unflatten(out.permute(0, 2, 3, 1), 0, (batch, -1))


class ImplicitAlignment(nn.Module):
    """Reads features between pixels by attention to the four surrounding pixels (section 3.2).

    Sinusoidal encodings are added: to the query, of its position between the pixels; to keys and
    values, of the pixels' positions. As in the published implementation, the two encodings differ
    in scale, and frequencies grow from 1 to 100.
    """

    position_bias: Tensor
    window_idx_offset: Tensor

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
        places = corners / (1 + 1e-6)
        self.register_buffer("position_bias", _encode(places, dim)[None])
        self.register_buffer("window_idx_offset", corners)
        self.q = nn.Linear(dim, dim)
        self.k = nn.Linear(dim, dim)
        self.v = nn.Linear(dim, dim)

    def project(self, y_BHWC: Tensor) -> Tensor:
        """Keys and values of the features to align, without the encoding: `(B, H, W, 2C)`."""
        return F.linear(y_BHWC, torch.cat((self.k.weight, self.v.weight)))

    def forward(self, memory_BHWC: Tensor, x_BHWC: Tensor, flow_B2HW: Tensor) -> Tensor:
        """Align features to `x`.

        Args:
            memory_BHWC: results of `project`; to align several features to the same `x`, join them
                on the batch.
            x_BHWC: features of the current frame.
            flow_B2HW: flows from `x` to the features, joined alike.

        Returns:
            The aligned features, `(B, H, W, C)`.
        """
        count, height, width, _ = memory_BHWC.shape
        dim = x_BHWC.shape[-1]
        rows = torch.arange(height, device=x_BHWC.device, dtype=torch.float32)
        columns = torch.arange(width, device=x_BHWC.device, dtype=torch.float32)
        x = columns + flow_B2HW[:, 0].float()
        y = rows[:, None] + flow_B2HW[:, 1].float()
        place = torch.stack((y - y.floor(), x - x.floor()), dim=-1)

        # Beyond its border the image repeats the border; positions between pixels do not change.
        corner_y, corner_x = self.window_idx_offset[:, :, None, None, None].unbind(1)
        at_y = pixel_index(y.floor() + corner_y, height)
        at_x = pixel_index(x.floor() + corner_x, width)
        clip = torch.arange(count, device=x.device)[:, None, None]
        index = (clip * height + at_y) * width + at_x
        around = F.embedding(index, memory_BHWC.flatten(0, 2))

        # The projections are linear: those of the four encodings are four constant vectors.
        bias = torch.cat((self.k(self.position_bias[0]), self.v(self.position_bias[0])), dim=-1)
        around = around + bias[:, None, None, None]
        keys, values = torch.unflatten(around, -1, (2, self.heads, -1)).unbind(-3)
        encoded = _encode(place / (2 + 1e-6), dim)
        queries = self.q(x_BHWC.repeat(count // len(x_BHWC), 1, 1, 1) + encoded)
        queries = torch.unflatten(queries, -1, (self.heads, -1)) * (dim // self.heads) ** -0.5
        weights = (queries * keys).sum(-1, keepdim=True).float().softmax(0)
        aligned: Tensor = (weights * values).sum(0).flatten(-2)
        return aligned.to(memory_BHWC.dtype)


def _encode(place: Tensor, dim: int) -> Tensor:
    """Sine and cosine features of positions (row, column): `(..., 2)` to `(..., dim)`.

    Features of the row come first. A position of 1 is a full turn at the lowest frequency, 1;
    frequencies grow to nearly 1 / `_TEMPERATURE`.
    """
    steps = torch.arange(0, dim // 2, 2, device=place.device, dtype=torch.float32)
    periods = _TEMPERATURE ** (steps / (dim // 2))
    phases = (place * (2 * math.pi))[..., None] / periods
    return torch.stack((phases.sin(), phases.cos()), dim=-1).flatten(-3)
