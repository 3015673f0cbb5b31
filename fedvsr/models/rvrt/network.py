"""The network of RVRT (Liang et al. 2022), and its guided deformable attention.

Four branches pass over the clip, backward and forward in turn, two frames a step; each step aligns
the state of the step before.

B clips, T frames, N = B * frames folded, C channels, H x W low-resolution pixels; a frame's
channels lie last in memory. G deformable groups, P taps. Flows are (dx, dy) in pixels. A guide,
`(2B, 2, 2, H, W)`, holds two flows for each frame of a pair: to the frame in the same place of the
pair before, and to the one in the other place.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._flow import SpyNet, compose, flow_grid
from fedvsr.models._frames import FrameConv, per_frame
from fedvsr.models._norm import LayerNorm
from fedvsr.models._recompute import recompute_plain
from fedvsr.models._recurrence import recurrence
from fedvsr.models._sampling import grid_sample, sampling_grid, tap_places
from fedvsr.models._start import start_linear, start_on_edges
from fedvsr.models._triton import fused
from fedvsr.models._windows import Mlp, SwinLayer, SwinLayers
from fedvsr.models.rvrt import CLIP, Config, spec
from fedvsr.models.spec import Window

_BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")
# Keys, or values, that the guided deformable attention samples at once, in numbers.
_CHUNK_SAMPLES = 2**23


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, 4H, 4W)`, not clamped."""

    compiled_layers = (SwinLayer,)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.spec = spec(config)
        self.cache_length = config.cpu_cache_length
        dim = config.embed_dims[1]
        frame: Window = (1, *config.window_size[1:])
        self.spynet = SpyNet()
        self.feat_extract = _Stage(config, 0, 3, frame)
        self.backbone = nn.ModuleDict()
        self.deform_align = nn.ModuleDict()
        for i, branch in enumerate(_BRANCHES):
            self.backbone[branch] = _Stage(config, 1, (2 + i) * dim, config.window_size)
            self.deform_align[branch] = GuidedDeformableAttention(config)
        self.reconstruction = _Stage(config, 2, (1 + len(_BRANCHES)) * dim, frame)
        self.conv_before_upsampler = nn.Sequential(FrameConv(dim, 64, 1), nn.LeakyReLU(0.1, True))
        self.upsampler = nn.ModuleDict(
            {"0": FrameConv(64, 256, 3), "5": FrameConv(64, 256, 3), "10": FrameConv(64, 64, 3)}
        )
        self.conv_last = FrameConv(64, 3, 3)
        if config.start == "edges":
            self._start_on_edges()

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips of an even number of frames, at least 32 pixels a side.

        Raises:
            ValueError: the clips have another size.
        """
        self.spec.require_clip(lq_BTCHW, "rvrt")
        device = lq_BTCHW.device
        spare = lq_BTCHW.shape[1] > self.cache_length and not torch.is_grad_enabled()
        home = torch.device("cpu") if spare else device

        features = [per_frame(self._extract, [lq_BTCHW], device, home)]
        (backward,), (forward,) = self.spynet.both_ways(lq_BTCHW)
        guides = {"backward": _guides(backward.flip(1)), "forward": _guides(forward)}
        for branch in _BRANCHES:
            way = branch.partition("_")[0]
            # A backward branch is a forward one on the clip played in reverse.
            reverse = way == "backward"
            played = [f.flip(1) for f in features] if reverse else features
            new, guides[way] = self._propagate(branch, played, guides[way], device, home)
            features.append(new.flip(1) if reverse else new)
        return per_frame(self._reconstruct, [lq_BTCHW, *features], device, device)

    def _start_on_edges(self) -> None:
        stages = [module for module in self.modules() if isinstance(module, _Stage)]
        first, *others = (stage.main["1"] for stage in stages)
        enlarging = (self.conv_before_upsampler[0], *self.upsampler.values())
        groups = (module.linear for module in self.modules() if isinstance(module, _Group))
        start_on_edges(first, (*others, *enlarging), self.conv_last, groups)
        for stage in stages:
            stage.start_linear()

    def _extract(self, lq: Tensor) -> Tensor:
        features: Tensor = self.feat_extract(self.feat_extract.enter([lq]))
        return features

    def _propagate(
        self,
        branch: str,
        features: Sequence[Tensor],
        guides: Tensor,
        device: torch.device,
        home: torch.device,
    ) -> tuple[Tensor, Tensor]:
        """Run one branch over the clip, in its direction of play.

        Args:
            branch: the branch's name.
            features: features of the branches before it, `(B, T, C, H, W)` each.
            guides: one for each step from the second on, `(steps - 1, 2B, 2, 2, H, W)`.
            device: the device that computes.
            home: the device that keeps features.

        Returns:
            The branch's features, and the guides refined by the alignment.
        """
        align, stage = self.deform_align[branch], self.backbone[branch]
        assert isinstance(stage, _Stage)
        # The input convolution's share of earlier branches does not depend on the recurrence, nor
        # do the places to which flows point.
        entered = _pairs(per_frame(lambda *f: stage.enter(f), features, device, home))
        grids = flow_grid(guides.flatten(0, 2))
        sources = _pairs(features[-1])

        def step(state: Tensor, entry: Tensor, *alignment: Tensor) -> tuple[Tensor, Tensor | None]:
            guide: Tensor | None = None
            if alignment:
                now, before, guide, grid = alignment
                both = torch.stack((state, _swap(state)), dim=1)
                warped = grid_sample(both.flatten(0, 1).float(), grid).to(state.dtype)
                state, guide = align(now, before, state, warped.view_as(both), guide)
                entry = entry + stage.enter([state], first=len(features))
            return state + stage(entry), guide

        take_step = recurrence(step, align, stage)
        state, _ = take_step(torch.zeros_like(sources[0], device=device), entered[0].to(device))
        states, refined = [state.to(home)], []
        for now, before, entry, guide, grid in zip(
            sources[1:],
            sources[:-1],
            entered[1:],
            guides,
            torch.unflatten(grids, 0, (len(guides), CLIP * len(state))),
            strict=True,
        ):
            state, guide = take_step(
                state, entry.to(device), now.to(device), before.to(device), guide, grid
            )
            refined.append(guide)
            states.append(state.to(home))
        # Joined with channels last, as they lie in memory.
        joined = torch.stack([s.permute(0, 2, 3, 1) for s in states])
        joined = torch.unflatten(joined, 1, (-1, CLIP)).transpose(0, 1).flatten(1, 2)
        return joined.permute(0, 1, 4, 2, 3), torch.stack(refined) if refined else guides

    def _reconstruct(self, lq: Tensor, *features: Tensor) -> Tensor:
        x = self.reconstruction(self.reconstruction.enter(features))
        x = self.conv_before_upsampler(x)
        for name in ("0", "5"):
            x = F.leaky_relu_(F.pixel_shuffle(self.upsampler[name](x), 2), 0.1)
        residual: Tensor = self.conv_last(self.upsampler["10"](x))
        return residual + F.interpolate(lq, scale_factor=4, mode="bilinear", align_corners=False)


def _pairs(clip_BTCHW: Tensor) -> list[Tensor]:
    """Split a clip into the steps of the recurrence, `(2B, C, H, W)` each."""
    return [pair.flatten(0, 1) for pair in torch.split(clip_BTCHW, CLIP, dim=1)]


def _swap(pairs: Tensor) -> Tensor:
    """Exchange the two frames of each pair."""
    return torch.unflatten(pairs, 0, (-1, CLIP)).flip(1).flatten(0, 1)


def _guides(flow_BT2HW: Tensor) -> Tensor:
    """Guides from each pair of frames (u, v) to the pair (a, b) before it, in order of play.

    Args:
        flow_BT2HW: from every frame but the first to the one before.

    Returns:
        `(T / 2 - 1, 2B, 2, 2, H, W)`.
    """
    batch, frames, *rest = flow_BT2HW.shape
    if frames < CLIP:
        return flow_BT2HW.new_empty(0, CLIP * batch, CLIP, *rest)
    ba, ub, vu = (flow_BT2HW[:, i : i - 2 or None : 2].flatten(0, 1) for i in range(3))
    ua, vb = compose(ub, ba), compose(vu, ub)
    va = compose(vu, ua)
    flows = torch.stack((ua, ub, vb, va), dim=1).view(batch, -1, CLIP, CLIP, *rest)
    return flows.transpose(0, 1).flatten(1, 2)


class _Stage(nn.Module):
    """An input convolution and residual groups of window attention.

    Args:
        config: the network's settings.
        place: before (0), in (1) or after (2) the branches.
        inputs: input channels.
        window: the attention's window.
    """

    def __init__(self, config: Config, place: int, inputs: int, window: Window) -> None:
        super().__init__()
        dim = config.embed_dims[place]
        groups = nn.Sequential(
            *(_Group(config, place, window) for _ in range(config.num_blocks[place]))
        )
        self.depth = window[0]
        self.main = nn.ModuleDict(
            {
                "1": FrameConv(inputs, dim, 3),
                "3": LayerNorm(dim),
                "5": groups,
                "7": LayerNorm(dim),
            }
        )

    def start_linear(self) -> None:
        """Begin with normalisations that keep how strong features are."""
        groups = self.main["5"]
        assert isinstance(groups, nn.Sequential)
        last = groups[-1]
        assert isinstance(last, _Group)
        start_linear(self.main["1"], self.main["3"])
        start_linear(last.linear, self.main["7"])

    def enter(self, parts: Sequence[Tensor], first: int = 0) -> Tensor:
        """Apply the input convolution to some parts of its input.

        The whole convolution is the sum over all parts.

        Args:
            parts: parts of equal numbers of channels, `(N, c, H, W)` each.
            first: position of the first part in the input. Part 0 adds the bias.
        """
        conv = self.main["1"]
        assert isinstance(conv, FrameConv)
        weights = torch.split(conv.weight.squeeze(2), parts[0].shape[1], dim=1)
        x = F.conv2d(parts[0], weights[first], None if first else conv.bias, padding=1)
        for part, weight in zip(parts[1:], weights[first + 1 :], strict=False):
            x = x + F.conv2d(part, weight, padding=1)
        return x

    def forward(self, x: Tensor) -> Tensor:
        """Apply all that follows the input convolution, `(N, C, H, W)` to the same."""
        x = torch.unflatten(self.main["3"](x.permute(0, 2, 3, 1)), 0, (-1, self.depth))
        x = self.main["7"](self.main["5"](x)).flatten(0, 1)
        return x.permute(0, 3, 1, 2)


class _Group(nn.Module):
    """Attention layers, every second one shifted, then a linear layer; all inside a residual."""

    def __init__(self, config: Config, place: int, window: Window) -> None:
        super().__init__()
        dim = config.embed_dims[place]
        layers = [
            SwinLayer(
                dim,
                window,
                config.num_heads[place],
                config.mlp_ratio,
                shifted=i % 2 == 1,
                qkv_name="qkv_self",
                checkpointing=config.checkpointing,
            )
            for i in range(config.depths[place])
        ]
        self.residual_group = nn.ModuleDict({"blocks": SwinLayers(layers)})
        self.linear = nn.Linear(dim, dim)

    def forward(self, x_GDHWC: Tensor) -> Tensor:
        residual: Tensor = self.linear(self.residual_group["blocks"](x_GDHWC))
        return x_GDHWC + residual


class GuidedDeformableAttention(nn.Module):
    """Aligns the state of a pair of frames to the next pair (section 3.3 of the paper).

    Every pixel attends to places in both frames of the pair before: a window around where the flow
    points, each place moved by a learned offset. Keys and values have separate offsets, as in the
    published implementation; the paper describes one set.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.embed_dims[1]
        self.groups = config.deformable_groups
        self.heads = config.attention_heads
        self.reach = config.max_residue_magnitude
        self.taps = config.attention_window
        width, places = 64, CLIP * self.taps[0] * self.taps[1]
        self.proj_q = nn.ModuleDict({"1": nn.Linear(dim, 2 * dim)})
        self.proj_k = nn.ModuleDict({"1": nn.Linear(dim, 2 * dim)})
        self.proj_v = nn.ModuleDict({"1": nn.Linear(dim, 2 * dim)})
        self.mlp = nn.ModuleDict({"1": Mlp(dim, 2 * dim)})
        layers: list[nn.Module] = [FrameConv(3 * dim + 2 * CLIP, width, 1)]
        for _ in range(4):
            layers += [nn.LeakyReLU(0.1, True), FrameConv(width, width, 3)]
        head = FrameConv(width, 2 * places * self.groups, 1)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.conv_offset = nn.Sequential(*layers, nn.LeakyReLU(0.1, True), head)
        self.proj = nn.ModuleDict({"1": nn.Linear(2 * dim, dim)})

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, warped: Tensor, guide: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Align `value`.

        Args:
            query: features of the current pair, `(2B, C, H, W)`.
            key: features of the pair before.
            value: the state of the pair before.
            warped: `value` moved along the flows of the guide, `(2B, 2, C, H, W)`.
            guide: flows to the pair before.

        Returns:
            The aligned state, and the guide with the mean offset added.
        """
        inputs = (query, warped.flatten(1, 2), guide.flatten(1, 2).to(query.dtype))
        offset = self.conv_offset(torch.cat(inputs, dim=1)).float().tanh()
        # (dy, dx) of every place relative to the pixel: N, frame, group, tap, 2, H, W.
        offset = torch.unflatten(offset, 1, (CLIP, self.groups, -1, 2))
        offset = torch.add(guide.flip(2)[:, :, None, None], offset, alpha=self.reach)
        refined = offset.mean((2, 3)).flip(2)

        q, k, v = (
            projection["1"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            for projection, x in ((self.proj_q, query), (self.proj_k, key), (self.proj_v, value))
        )
        attended = guided_attention(q, k, v, offset, self.heads, self.taps)
        y = self.proj["1"](attended.permute(0, 2, 3, 1))
        y = y + self.mlp["1"](y)
        return y.permute(0, 3, 1, 2), refined


def guided_attention(
    q: Tensor, k: Tensor, v: Tensor, offset: Tensor, heads: int, taps: tuple[int, int]
) -> Tensor:
    """Attention of every pixel to places in both frames of another pair.

    On a GPU that Triton supports, this is `_guided_triton.guided_attention`. Elsewhere a few
    channels and rows are sampled at a time, and sampled again in the backward pass, so that memory
    holds at most `_CHUNK_SAMPLES` keys and as many values. All of them would take 41 KB per pixel
    and frame in the paper's network.

    Args:
        q: queries, `(N, C, H, W)`, pairs of frames folded.
        k: keys of the other pair, of the same shape.
        v: values of the other pair, of the same shape.
        offset: where to sample, float32 `(N, 2, G, P, 2, H, W)`: for each tap, (dy, dx) in pixels,
            added to the position of the tap in a window around the pixel. First come those in the
            frame of the same place in the pair, then those in the other frame. The first half of
            the groups samples keys, the second half values; each half divides all channels.
        heads: attention heads; they divide the channels.
        taps: rows and columns of the window, P in all.

    Returns:
        `(N, C, H, W)`, of the dtype of `q`.
    """
    # The kernels' gradients are summed in no fixed order.
    if fused(q) and not torch.are_deterministic_algorithms_enabled():
        from fedvsr.models.rvrt import _guided_triton

        attended: Tensor = _guided_triton.guided_attention(q, k, v, offset, heads, taps)
        return attended
    grid = _grid(offset, taps)
    q, k, v = (x.contiguous() for x in (q, k, v))
    count, channels, _, width = q.shape
    key_groups = grid.shape[2] // 2
    # The smallest number of channels that consists of whole heads and of whole groups.
    unit = math.lcm(channels // heads, channels // key_groups)
    units = channels // unit
    dtype, q = q.dtype, q.float() * (channels // heads) ** -0.5
    rows = max(1, _CHUNK_SAMPLES // (count * CLIP * unit * grid.shape[3] * width))
    grids = torch.split(grid, key_groups // units, dim=2)
    outs = []
    for q_u, k_u, v_u, key_grid, value_grid in zip(
        *(torch.split(x, unit, dim=1) for x in (q, k, v)), grids[:units], grids[units:], strict=True
    ):
        parts = zip(
            torch.split(q_u, rows, dim=2),
            torch.split(key_grid, rows, dim=4),
            torch.split(value_grid, rows, dim=4),
            strict=True,
        )
        attend = partial(_attend, unit * heads // channels)
        parts_out = [recompute_plain(attend, k_u, v_u, *part) for part in parts]
        outs.append(torch.cat(parts_out, dim=2))
    return torch.cat(outs, dim=1).to(dtype)


def _attend(
    heads: int, k: Tensor, v: Tensor, q: Tensor, key_grid: Tensor, value_grid: Tensor
) -> Tensor:
    with torch.autocast(q.device.type, enabled=False):
        keys, values = _sample(k.float(), key_grid, heads), _sample(v.float(), value_grid, heads)
        # N, frame, head, channel, tap, H, W; the softmax is over frames and taps.
        logits = (torch.unflatten(q, 1, (1, heads, -1)).unsqueeze(4) * keys).sum(3)
        weights = logits.transpose(1, 2).flatten(2, 3).softmax(2)
        weights = torch.unflatten(weights, 2, (CLIP, -1)).transpose(1, 2)
        return (weights.unsqueeze(3) * values).sum((1, 4)).flatten(1, 2)


def _sample(x: Tensor, grid: Tensor, heads: int) -> Tensor:
    """Read `(N, c, H, W)` at `(N, 2, g, P, h, W, 2)`: N, frame, head, channel, P, h, W."""
    count, frames, groups, places, rows, width, _ = grid.shape
    both = torch.stack((x, _swap(x)), dim=1).reshape(-1, x.shape[1] // groups, *x.shape[2:])
    sampled = grid_sample(both, grid.reshape(-1, places * rows, width, 2))
    return sampled.reshape(count, frames, heads, -1, places, rows, width)


def _grid(offset: Tensor, taps: tuple[int, int]) -> Tensor:
    """Positions (x, y), -1 and 1 at the outer pixels: N, frame, group, tap, H, W, 2."""
    height, width = offset.shape[-2:]
    places = tap_places(taps, height, width, offset.device)
    return sampling_grid(places + offset.flip(-3).movedim(-3, -1), height, width)
