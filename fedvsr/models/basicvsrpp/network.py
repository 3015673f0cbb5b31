"""The network of BasicVSR++ (Chan et al. 2022).

Four branches pass over the clip, backward and forward in turn. A step aligns the states of the two
steps before with a deformable convolution around where the flow points, and residual blocks merge
them with the current frame's features from the branches before.

B clips, T frames, N = B * frames folded, C channels, H x W low-resolution pixels, k = 1 or 2 states
that are aligned together. Flows are (dx, dy) in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._flow import SpyNet, compose, flow_warp
from fedvsr.models._frames import per_frame
from fedvsr.models._recompute import recompute_plain
from fedvsr.models._recurrence import recurrence
from fedvsr.models._start import start_on_edges
from fedvsr.models.basicvsrpp import Config, spec
from fedvsr.models.basicvsrpp.layers import (
    SLOPE,
    Alignment,
    Blocks,
    Enlargement,
    conv3x3,
)

_BRANCHES = ("backward_1", "forward_1", "backward_2", "forward_2")
# Residual blocks before and after the branches.
_DEPTH = 5
# Channels after the second enlargement.
_WIDTH = 64


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, 4H, 4W)`, not clamped."""

    compiled_layers = (Blocks, Alignment)

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.spec = spec(config)
        self.cache_length = config.cpu_cache_length
        self.checkpointing = config.checkpointing
        dim, depth = config.mid_channels, config.num_blocks
        self.spynet = SpyNet(wrapped=True)
        self.feat_extract = Blocks(3, dim, _DEPTH)
        self.deform_align = nn.ModuleDict({branch: Alignment(config) for branch in _BRANCHES})
        self.backbone = nn.ModuleDict(
            {branch: Blocks((2 + i) * dim, dim, depth) for i, branch in enumerate(_BRANCHES)}
        )
        self.reconstruction = Blocks((1 + len(_BRANCHES)) * dim, dim, _DEPTH)
        self.upsample1 = Enlargement(dim, dim)
        self.upsample2 = Enlargement(dim, _WIDTH)
        self.conv_hr = conv3x3(_WIDTH, _WIDTH)
        self.conv_last = conv3x3(_WIDTH, 3)
        if config.start == "edges":
            first, *others = (m.first for m in self.modules() if isinstance(m, Blocks))
            start_on_edges(first, (*others, self.conv_hr), self.conv_last)

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips of any number of frames, at least 32 pixels a side.

        Raises:
            ValueError: the clips have another size.
        """
        self.spec.require_clip(lq_BTCHW, "basicvsrpp")
        device, frames = lq_BTCHW.device, lq_BTCHW.shape[1]
        spare = frames > self.cache_length and not torch.is_grad_enabled()
        home = torch.device("cpu") if spare else device

        extract = partial(self._maybe_again, self._extract)
        features = [per_frame(extract, [lq_BTCHW], device, home)]
        guides: dict[str, Tensor] = {}
        if frames > 1:
            (backward,), (forward,) = self.spynet.both_ways(lq_BTCHW)
            guides = {"backward": _guides(backward.flip(1)), "forward": _guides(forward)}
        for branch in _BRANCHES:
            way = branch.partition("_")[0]
            # A backward branch is a forward one on the clip played in reverse.
            reverse = way == "backward"
            played = [f.flip(1) for f in features] if reverse else features
            new = self._propagate(branch, played, guides.get(way), device, home)
            features.append(new.flip(1) if reverse else new)
        reconstruct = partial(self._maybe_again, self._reconstruct)
        return per_frame(reconstruct, [lq_BTCHW, *features], device, device)

    def _maybe_again(self, function: Callable[..., Tensor], *args: Tensor) -> Tensor:
        """Call a function of tensors, whose inner values are computed again if blocks are."""
        if self.checkpointing == "blocks":
            return recompute_plain(function, *args)
        return function(*args)

    def _extract(self, lq: Tensor) -> Tensor:
        features: Tensor = self.feat_extract(self.feat_extract.enter(lq))
        return features

    def _propagate(
        self,
        branch: str,
        features: list[Tensor],
        guides: Tensor | None,
        device: torch.device,
        home: torch.device,
    ) -> Tensor:
        """Run one branch over the clip, in its direction of play.

        Args:
            branch: the branch's name.
            features: features of the frames and of the branches before, `(B, T, C, H, W)` each.
            guides: flows for each step from the second on, `(B, T - 1, 4, H, W)`, if there is one.
            device: the device that computes.
            home: the device that keeps features.

        Returns:
            The branch's features, `(B, T, C, H, W)`.
        """
        blocks, align = self.backbone[branch], self.deform_align[branch]
        assert isinstance(blocks, Blocks)
        assert isinstance(align, Alignment)
        # What the first convolutions see of the frames and of earlier branches does not depend on
        # the recurrence.
        entries = per_frame(blocks.enter, features, device, home).unbind(1)
        states = [blocks(entries[0].to(device))]
        if guides is not None:
            heads = per_frame(align.enter, [features[0][:, 1:], guides], device, home).unbind(1)
            take_step = recurrence(partial(_step, blocks, align), blocks, align)
            for i, (entry, head) in enumerate(zip(entries[1:], heads, strict=True)):
                recent = [state.to(device) for state in states[-1:-3:-1]]
                guide = guides[:, i, : 2 * len(recent)]
                state = self._maybe_again(
                    take_step, entry.to(device), head.to(device), guide, *recent
                )
                states[-1] = states[-1].to(home)
                states.append(state)
        return torch.stack([state.to(home) for state in states], dim=1)

    def _reconstruct(self, lq: Tensor, *features: Tensor) -> Tensor:
        x = self.reconstruction(self.reconstruction.enter(*features))
        x = F.leaky_relu(self.upsample1(x), SLOPE)
        x = F.leaky_relu(self.upsample2(x), SLOPE)
        residual: Tensor = self.conv_last(F.leaky_relu(self.conv_hr(x), SLOPE))
        return residual + F.interpolate(lq, scale_factor=4, mode="bilinear", align_corners=False)


def _step(
    blocks: Blocks, align: Alignment, entry: Tensor, head: Tensor, guide: Tensor, *recent: Tensor
) -> Tensor:
    """The next state of a branch, from the `recent` ones; the newest of them comes first."""
    memory, flow = torch.stack(recent, dim=1), torch.unflatten(guide, 1, (-1, 2))
    warped = flow_warp(memory.flatten(0, 1), flow.flatten(0, 1)).view_as(memory)
    aligned = align(memory, warped, flow, head)
    state: Tensor = aligned + blocks(entry + blocks.enter_last(aligned))
    return state


def _guides(flow_BT2HW: Tensor) -> Tensor:
    """For each step from the second on: flows to the frame before, and to the one before that.

    The second step has no frame before the one before; its second flow is zero.

    Args:
        flow_BT2HW: in order of play, from every frame but the first to the one before.

    Returns:
        `(B, T - 1, 4, H, W)`, both flows joined.
    """
    now, before = flow_BT2HW[:, 1:], flow_BT2HW[:, :-1]
    two_back = compose(now.flatten(0, 1), before.flatten(0, 1)).view_as(now)
    two_back = torch.cat((torch.zeros_like(flow_BT2HW[:, :1]), two_back), dim=1)
    return torch.cat((flow_BT2HW, two_back), dim=2)
