"""The `tiny` network.

It propagates features in both directions (as BasicVSR, Chan et al. 2021) without alignment, ends in
a pixel shuffle, and adds its output to bicubic enlargement, which an untrained network equals.
B clips, T frames, C channels, H x W the low-resolution size.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models.tiny import Config, spec
from fedvsr.resize import upscale_planes

# Leaky, as in BasicVSR: in front of a last layer of zeros, plain rectifiers die in a few steps.
_SLOPE = 0.1


class Model(nn.Module):
    """Low-resolution clips `(B, T, 3, H, W)` to `(B, T, 3, scale * H, scale * W)`."""

    compiled_layers = ()

    def __init__(self, config: Config) -> None:
        super().__init__()
        channels = config.channels
        self.spec = spec(config)
        self.extract = _conv(3, channels)
        self.forward_cell = _Cell(channels, config.blocks)
        self.backward_cell = _Cell(channels, config.blocks)
        self.fuse = _conv(3 * channels, 2 * channels)
        self.to_pixels = _conv(2 * channels, 3 * config.scale**2, gain=0)

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        """Super-resolve clips; any number of frames and any size."""
        batch, frames, _, height, width = lq_BTCHW.shape
        lq_NCHW = lq_BTCHW.flatten(0, 1)
        extracted = _activate(self.extract(lq_NCHW - 0.5))
        features = extracted.view(batch, frames, -1, height, width).unbind(1)
        ahead = _propagate(self.forward_cell, features)
        back = _propagate(self.backward_cell, features[::-1])[::-1]
        per_frame = [torch.cat(f, dim=1) for f in zip(features, ahead, back, strict=True)]
        fused = _activate(self.fuse(torch.stack(per_frame, dim=1).flatten(0, 1)))
        residual = F.pixel_shuffle(self.to_pixels(fused), self.spec.scale)
        sr_NCHW = upscale_planes(lq_NCHW, self.spec.scale) + residual
        return sr_NCHW.view(batch, frames, *sr_NCHW.shape[1:])


class _Cell(nn.Module):
    """One step of propagation: maps a frame's features and the state so far to the next state."""

    def __init__(self, channels: int, blocks: int) -> None:
        super().__init__()
        self.merge = _conv(2 * channels, channels)
        self.blocks = nn.ModuleList(_Block(channels) for _ in range(blocks))

    def forward(self, feature: Tensor, state: Tensor) -> Tensor:
        state = _activate(self.merge(torch.cat([feature, state], dim=1)))
        for block in self.blocks:
            state = block(state)
        return state


class _Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _conv(channels, channels)
        self.second = _conv(channels, channels, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.second(_activate(self.first(x)))
        return x + residual


def _conv(inputs: int, outputs: int, gain: float = 1.0) -> nn.Conv2d:
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    # He et al. 2015. torch's default shrinks features so much that a short training learns nothing.
    nn.init.kaiming_normal_(conv.weight, a=_SLOPE, nonlinearity="leaky_relu")
    with torch.no_grad():
        conv.weight.mul_(gain)
        assert conv.bias is not None
        conv.bias.zero_()
    return conv


def _propagate(cell: _Cell, features: tuple[Tensor, ...]) -> list[Tensor]:
    state = torch.zeros_like(features[0])
    states: list[Tensor] = []
    for feature in features:
        state = cell(feature, state)
        states.append(state)
    return states


def _activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, _SLOPE)
