"""The network of VRT, the Video Restoration Transformer (Liang et al. 2024).

A U-shaped trunk over the whole clip at once: at each of its seven stages frames attend to each
other inside windows, then every frame gathers features of its neighbours along the optical flow by
deformable convolution ("parallel warping"). Six groups of self attention follow at full size.

B clips, T frames, C channels, H x W the tensor's own height and width. Pixels are RGB in [0, 1].
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._attention import GatedMlp, WindowAttention, WindowPlan, window_plan
from fedvsr.models._deform import deform_conv3x3
from fedvsr.models._flow import SpyNet, compose, flow_warp
from fedvsr.models._frames import FrameConv
from fedvsr.models._norm import LayerNorm
from fedvsr.models._recompute import Kept, recompute
from fedvsr.models._start import start_on_edges
from fedvsr.models._windows import Paths, add_branch, draw_paths
from fedvsr.models.spec import Checkpointing, Window
from fedvsr.models.vrt import NUM_STAGES, Config, spec

# Scale (a power of 1/2) of each stage of the trunk.
_STAGE_SCALES = (0, 1, 2, 3, 2, 1, 0)
# Largest learned displacement at full size, in pixels; it scales with the size of a stage.
_MAX_OFFSET = 10.0
_UPSAMPLE_WIDTH = 64


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` to `(B, T, 3, upscale * H, upscale * W)`."""

    compiled_layers = (WindowAttention, GatedMlp)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.spec = spec(config)
        self.reach = config.pa_frames // 2
        self.checkpointing = config.checkpointing
        channels, width = config.embed_dims[0], config.embed_dims[-1]
        # A frame, and four pixels of each of its two aligned neighbours.
        self.conv_first = FrameConv(3 * (1 + 4 + 4), channels, 3)
        self.spynet = SpyNet([2, 3, 4, 5])
        rates = torch.linspace(0, config.drop_path_rate, sum(config.depths), device="cpu").tolist()
        by_depth = [
            rates[sum(config.depths[:i]) : sum(config.depths[: i + 1])]
            for i in range(len(config.depths))
        ]
        for i in range(NUM_STAGES):
            self.add_module(f"stage{i + 1}", _Stage(config, i, by_depth[i]))
        widen = nn.Sequential(nn.Identity(), LayerNorm(channels), nn.Linear(channels, width))
        self.stage8 = nn.ModuleList([widen])
        for i in range(NUM_STAGES, len(config.depths)):
            self.stage8.append(_FinalGroup(config, i, by_depth[i]))
        self.norm = LayerNorm(width)
        self.conv_after_body = nn.Linear(width, channels)
        if config.upscale == 1:
            # As the published networks for deblurring and denoising end.
            self.conv_last = FrameConv(channels, 3, 3)
            if config.start == "edges":
                self._start_on_edges(())
            return
        self.conv_before_upsample = nn.Sequential(
            FrameConv(channels, _UPSAMPLE_WIDTH, 3), nn.LeakyReLU(0.01, inplace=True)
        )
        self.upsample = _Upsample(_UPSAMPLE_WIDTH, config.upscale)
        self.conv_last = FrameConv(_UPSAMPLE_WIDTH, 3, 3)
        if config.start == "edges":
            self._start_on_edges((self.conv_before_upsample[0], *self.upsample.values()))

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips.

        Raises:
            ValueError: the clips are too short or small, or their sides are not multiples of 8.
        """
        self.spec.require_clip(lq_BTCHW, "vrt")
        flows = self._flows(lq_BTCHW)
        batch, frames = lq_BTCHW.shape[:2]
        first = self.conv_first(self._aligned_pixels(lq_BTCHW, flows[0]))
        first = first.permute(0, 2, 3, 1).contiguous()
        body = self._trunk(first.view(batch, frames, *first.shape[1:]), flows).flatten(0, 1)
        features = (first + self.conv_after_body(self.norm(body))).permute(0, 3, 1, 2)
        lean = self.checkpointing == "blocks"
        residual = recompute(self._enlarge, features) if lean else self._enlarge(features)
        base = F.interpolate(
            lq_BTCHW.flatten(0, 1).float(),
            scale_factor=self.spec.scale,
            mode="bilinear",
            align_corners=False,
        )
        return (base + residual).view(batch, frames, 3, *base.shape[-2:])

    def _start_on_edges(self, enlarging: Iterable[nn.Module]) -> None:
        body = (self.conv_after_body,)
        start_on_edges(self.conv_first, enlarging, self.conv_last, body, own_channels=3)

    def _flows(self, lq_BTCHW: Tensor) -> list[list[Tensor]]:
        """For each scale, for each distance k = 1, 2, ...: flows `(2, B, T - k, 2, H, W)`.

        On the first axis, the first entry holds backward flows (to later frames; its entry t
        belongs to frame t), the second forward flows (to earlier frames; t belongs to frame t + k).
        """
        backward, forward = self.spynet.both_ways(lq_BTCHW)
        scales = []
        for step in map(torch.stack, zip(backward, forward, strict=True)):
            flows = [step]
            for k in range(2, self.reach + 1):
                first = torch.stack((flows[-1][0, :, :-1], flows[-1][1, :, 1:]))
                second = torch.stack((step[0, :, k - 1 :], step[1, :, : 1 - k]))
                composed = compose(first.flatten(0, 2), second.flatten(0, 2))
                flows.append(composed.view_as(first))
            scales.append(flows)
        return scales

    def _aligned_pixels(self, lq_BTCHW: Tensor, flows: list[Tensor]) -> Tensor:
        """Each frame and four pixels of each of its two neighbours, `(B * T, 27, H, W)`."""
        source = torch.stack((lq_BTCHW[:, 1:], lq_BTCHW[:, :-1]))
        aligned = flow_warp(source.flatten(0, 2), flows[0].flatten(0, 2), "nearest4")
        aligned = aligned.view(*source.shape[:3], -1, *aligned.shape[-2:])
        backward, forward = _at_targets(aligned, missing=1)
        return torch.cat((lq_BTCHW, backward, forward), dim=2).flatten(0, 1)

    def _trunk(self, first_BTHWC: Tensor, flows: list[list[Tensor]]) -> Tensor:
        x = first_BTHWC
        skipped: list[Tensor] = []
        for i, scale in enumerate(_STAGE_SCALES):
            # From stage 5 on, a stage adds the features of the way down at its scale.
            x = self.get_submodule(f"stage{i + 1}")(x, flows[scale])
            if i < 3:
                skipped.append(x)
            elif i > 3:
                x = x + skipped.pop()
        for group in self.stage8:
            x = group(x)
        return x

    def _enlarge(self, features_NCHW: Tensor, _kept: Kept | None = None) -> Tensor:
        if self.spec.scale > 1:
            features_NCHW = self.upsample(self.conv_before_upsample(features_NCHW))
        enlarged: Tensor = self.conv_last(features_NCHW)
        return enlarged


class _Upsample(nn.ModuleDict):
    """Pixel shuffles by 2 up to `scale`, then a convolution. Names count in steps of five."""

    def __init__(self, channels: int, scale: int) -> None:
        steps = scale.bit_length() - 1
        convs: dict[str, nn.Module] = {
            str(5 * i): FrameConv(channels, 4 * channels, 3) for i in range(steps)
        }
        super().__init__({**convs, str(5 * steps): FrameConv(channels, channels, 3)})

    def forward(self, x_NCHW: Tensor) -> Tensor:
        *doublings, last = self.values()
        for conv in doublings:
            x_NCHW = F.leaky_relu(F.pixel_shuffle(conv(x_NCHW), 2), 0.1, inplace=True)
        out: Tensor = last(x_NCHW)
        return out


class _Stage(nn.Module):
    """Stage `index` of the trunk: change of scale, mutual and self attention, parallel warping."""

    def __init__(self, config: Config, index: int, rates: list[float]) -> None:
        super().__init__()
        channels, heads = config.embed_dims[index], config.num_heads[index]
        scale = _STAGE_SCALES[index]
        before = _STAGE_SCALES[index - 1] if index else 0
        if scale == before:
            self.reshape = nn.Sequential(nn.Identity(), LayerNorm(channels))
        else:
            inputs = 4 * channels if scale > before else channels // 4
            self.reshape = nn.Sequential(
                _PackCells() if scale > before else _SpreadCells(),
                LayerNorm(inputs),
                nn.Linear(inputs, channels),
            )
        lean = config.checkpointing == "attention"
        num_mutual = int(len(rates) * config.mul_attn_ratio)
        window = config.window_size
        self.residual_group1 = _Group(
            config, channels, heads, (2, *window[1:]), rates[:num_mutual], mutual=True
        )
        self.linear1 = nn.Linear(channels, channels)
        # As published, the rates of the second group start from the lowest again.
        self.residual_group2 = _Group(
            config, channels, heads, window, rates[: len(rates) - num_mutual], mutual=False
        )
        self.linear2 = nn.Linear(channels, channels)
        self.pa_deform = GuidedDeformConv(
            channels,
            config.pa_frames // 2,
            config.deformable_groups,
            _MAX_OFFSET / 2**scale,
            config.checkpointing != "none",
        )
        self.pa_fuse = GatedMlp(3 * channels, 3 * channels, channels, lean)
        self.checkpointed = config.checkpointing == "blocks"

    def forward(self, x_BTHWC: Tensor, flows: list[Tensor]) -> Tensor:
        x = self.reshape(x_BTHWC)
        x = x + self.linear1(self.residual_group1(x))
        x = x + self.linear2(self.residual_group2(x))
        if self.checkpointed:
            return recompute(partial(self._warp_and_fuse, flows), x)
        return self._warp_and_fuse(flows, x)

    def _warp_and_fuse(
        self, flows: list[Tensor], x_BTHWC: Tensor, _kept: Kept | None = None
    ) -> Tensor:
        x = x_BTHWC.permute(0, 1, 4, 2, 3).contiguous()
        sources, warped = [], []
        for k, flow in enumerate(flows, start=1):
            source = torch.stack((x[:, k:], x[:, :-k]))
            aligned = flow_warp(source.flatten(0, 2), flow.flatten(0, 2)).view_as(source)
            # All but the last (backward) or first (forward) frame are targets.
            sources.append(_at_targets(source, missing=k - 1))
            warped.append(_at_targets(aligned, missing=k - 1))
        guides = [_at_targets(flow, missing=k).flatten(0, 2) for k, flow in enumerate(flows)]
        target = torch.stack((x[:, :-1], x[:, 1:]))
        gathered = self.pa_deform(
            torch.cat(sources, dim=3).flatten(0, 2),
            torch.cat((*warped, target), dim=3).flatten(0, 2),
            guides,
        )
        # Views with channels last; the concatenation copies them.
        ends = _at_targets(gathered.view_as(target), missing=1).permute(0, 1, 2, 4, 5, 3)
        backward, forward = ends
        out: Tensor = self.pa_fuse(torch.cat((x_BTHWC, backward, forward), dim=-1))
        return out


class GuidedDeformConv(nn.Module):
    """Deformable convolution over neighbouring frames, guided by flow and by the warped frames.

    Args:
        channels: C of a frame.
        frames: K, the neighbours; each is convolved to its own C / K output channels.
        groups: offset groups, a multiple of K.
        max_offset: largest displacement from the flow, in pixels.
        lean: recompute sampled features in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        groups: int,
        max_offset: float,
        lean: bool = False,
    ) -> None:
        super().__init__()
        self.lean = lean
        self.frames = frames
        self.groups = groups
        self.max_offset = max_offset
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.bias = nn.Parameter(torch.zeros(channels))
        bound = (9 * channels) ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        layers: list[nn.Module] = []
        for inputs in ((1 + frames) * channels + 2 * frames, channels, channels):
            layers += [nn.Conv2d(inputs, channels, 3, padding=1), nn.LeakyReLU(0.1, inplace=True)]
        last = nn.Conv2d(channels, 27 * groups, 3, padding=1)
        nn.init.zeros_(last.weight)
        if last.bias is not None:
            nn.init.zeros_(last.bias)
        self.conv_offset = nn.Sequential(*layers, last)

    def forward(self, sources: Tensor, warped_and_target: Tensor, flows: list[Tensor]) -> Tensor:
        """Gather features for target frames.

        Args:
            sources: the K neighbours `(N, K * C, H, W)`, not warped.
            warped_and_target: the K neighbours warped, then the target, `(N, (K + 1) * C, H, W)`.
            flows: from the target to each neighbour, K times `(N, 2, H, W)`.

        Returns:
            `(N, C, H, W)`.
        """
        raw = self.conv_offset(torch.cat((warped_and_target, *flows), dim=1)).float()
        offset, mask = raw.split((18 * self.groups, 9 * self.groups), dim=1)
        offset = self.max_offset * torch.tanh(offset)
        # Offsets are (dy, dx), flows (dx, dy). Each neighbour has an equal number of the groups.
        guide = torch.stack(flows, dim=1).flip(2).unsqueeze(2)
        by_frame = offset.view(len(offset), self.frames, -1, 2, *offset.shape[-2:])
        offset = (by_frame + guide).flatten(1, 3)
        out = deform_conv3x3(
            sources, offset, torch.sigmoid(mask), self.weight, self.bias, self.lean
        )
        return out.to(sources.dtype)


class _FinalGroup(nn.Module):
    """Self attention at full size; entry `index` of `depths`."""

    def __init__(self, config: Config, index: int, rates: list[float]) -> None:
        super().__init__()
        channels = config.embed_dims[index]
        frames = 1 if index in config.indep_reconsts else config.window_size[0]
        window = (frames, *config.window_size[1:])
        self.residual_group = _Group(
            config, channels, config.num_heads[index], window, rates, mutual=False
        )
        self.linear = nn.Linear(channels, channels)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        out: Tensor = x_BTHWC + self.linear(self.residual_group(x_BTHWC))
        return out


class _Group(nn.Module):
    """Attention blocks; every second block shifts its windows by half their size."""

    def __init__(
        self,
        config: Config,
        channels: int,
        heads: int,
        window: Window,
        rates: list[float],
        mutual: bool,
    ) -> None:
        super().__init__()
        self.window = window
        self.whole = config.checkpointing == "blocks"
        self.drop_rates = rates
        hidden = int(channels * config.mlp_ratio)
        self.blocks = nn.ModuleList(
            _Block(channels, window, heads, hidden, mutual, rate, config.checkpointing)
            for rate in rates
        )

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        # Recomputes the whole group: inputs of single blocks, scattered in memory, would keep the C
        # allocator from reusing the space between them.
        paths = draw_paths(x_BTHWC, self.drop_rates, self.training)
        if self.whole:
            return recompute(partial(self._run, paths), x_BTHWC)
        return self._run(paths, x_BTHWC)

    def _run(self, paths: list[Paths], x_BTHWC: Tensor, _kept: Kept | None = None) -> Tensor:
        _, frames, height, width, _ = x_BTHWC.shape
        d, h, w = self.window
        for i, block in enumerate(self.blocks):
            shift = (d // 2, h // 2, w // 2) if i % 2 else (0, 0, 0)
            plan = window_plan((frames, height, width), self.window, shift, x_BTHWC.device)
            x_BTHWC = block(x_BTHWC, plan, paths[i])
        return x_BTHWC


class _Block(nn.Module):
    """Attention in windows, then a gated perceptron, each with a residual connection."""

    def __init__(
        self,
        channels: int,
        window: Window,
        heads: int,
        hidden: int,
        mutual: bool,
        drop_rate: float,
        checkpointing: Checkpointing,
    ) -> None:
        super().__init__()
        self.drop_rate = drop_rate
        self.checkpointing = checkpointing
        self.norm1 = LayerNorm(channels)
        self.attn = WindowAttention(channels, window, heads, mutual)
        self.norm2 = LayerNorm(channels)
        self.mlp = GatedMlp(channels, hidden, channels, checkpointing != "none")

    def forward(self, x_BTHWC: Tensor, plan: WindowPlan, paths: Paths) -> Tensor:
        if self.checkpointing == "attention":
            branch = recompute(partial(self._attend, plan), x_BTHWC)
        else:
            branch = self._attend(plan, x_BTHWC)
        x = add_branch(x_BTHWC, branch, self.drop_rate, paths[0])
        return add_branch(x, self.mlp(self.norm2(x)), self.drop_rate, paths[1])

    def _attend(self, plan: WindowPlan, x_BTHWC: Tensor, kept: Kept | None = None) -> Tensor:
        return plan.attend(self.attn, self.norm1(x_BTHWC), kept)


class _PackCells(nn.Module):
    """Moves 2 x 2 cells to channels: `(B, T, H, W, C)` to `(B, T, H / 2, W / 2, 4 C)`.

    In the new channels, the column in the cell varies slowest, then the row.
    """

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        batch, frames, height, width, channels = x_BTHWC.shape
        cells = x_BTHWC.view(batch, frames, height // 2, 2, width // 2, 2, channels)
        return cells.permute(0, 1, 2, 4, 5, 3, 6).flatten(4)


class _SpreadCells(nn.Module):
    """The inverse of `_PackCells`."""

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        cells = x_BTHWC.view(*x_BTHWC.shape[:-1], 2, 2, -1)
        return cells.permute(0, 1, 2, 5, 3, 4, 6).flatten(4, 5).flatten(2, 3)


def _at_targets(pairs: Tensor, missing: int) -> Tensor:
    """Add zeros for frames without a neighbour: `(2, B, T, ...)` to `(2, B, T + missing, ...)`.

    The backward alignment (first entry) lacks the last frames, the forward alignment the first.
    """
    if not missing:
        return pairs
    after = (0, 0) * (pairs.ndim - 3)
    return torch.stack(
        (F.pad(pairs[0], (*after, 0, missing)), F.pad(pairs[1], (*after, missing, 0)))
    )
