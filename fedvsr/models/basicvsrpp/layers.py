"""Layers of BasicVSR++ (Chan et al. 2022): residual blocks, and the second-order alignment.

N clips or frames, C channels, H x W low-resolution pixels, k = 1 or 2 states that are aligned
together. Flows are (dx, dy) in pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.models._deform import deform_conv3x3
from fedvsr.models._start import start_with_gain
from fedvsr.models.basicvsrpp import GROUPS, Config

# Slope below zero of all leaky rectifiers; the residual blocks have plain ones.
SLOPE = 0.1
_TAPS = 9


def conv3x3(inputs: int, outputs: int, gain: float | None = None) -> nn.Conv2d:
    """A 3 x 3 convolution; with a gain, of weights that keep a rectifier's variance, times it."""
    conv = nn.Conv2d(inputs, outputs, kernel_size=3, padding=1)
    if gain is not None:
        start_with_gain(conv, gain)
    return conv


class Blocks(nn.Module):
    """A convolution and residual blocks.

    The convolution is linear, so it can be applied to parts of its input, whose results add up.
    """

    def __init__(self, inputs: int, channels: int, depth: int) -> None:
        super().__init__()
        blocks = nn.Sequential(*(_ResidualBlock(channels) for _ in range(depth)))
        self.main = nn.ModuleDict({"0": conv3x3(inputs, channels), "2": blocks})

    @property
    def first(self) -> nn.Conv2d:
        """The convolution."""
        conv = self.main["0"]
        assert isinstance(conv, nn.Conv2d)
        return conv

    def enter(self, *parts: Tensor) -> Tensor:
        """Apply the convolution to its first channels, `(N, c, H, W)` for each part."""
        x = torch.cat(parts, dim=1)
        return F.conv2d(x, self.first.weight[:, : x.shape[1]], self.first.bias, padding=1)

    def enter_last(self, x: Tensor) -> Tensor:
        """Apply the convolution to its last channels, without the bias."""
        return F.conv2d(x, self.first.weight[:, -x.shape[1] :], padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Apply all that follows the convolution, `(N, C, H, W)` to the same."""
        out: Tensor = self.main["2"](F.leaky_relu(x, SLOPE))
        return out


class _ResidualBlock(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = conv3x3(channels, channels, gain=0.1)
        self.conv2 = conv3x3(channels, channels, gain=0.1)

    def forward(self, x: Tensor) -> Tensor:
        residual: Tensor = self.conv2(F.relu(self.conv1(x)))
        return x + residual


class Enlargement(nn.Module):
    """Doubles height and width."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.upsample_conv = conv3x3(inputs, 4 * outputs, gain=1.0)

    def forward(self, x: Tensor) -> Tensor:
        """`(N, C, H, W)` to `(N, C, 2H, 2W)`."""
        return F.pixel_shuffle(self.upsample_conv(x), 2)


class Alignment(nn.Module):
    """Aligns the states of the two steps before to the current frame (section 3.2 of the paper).

    A deformable convolution reads each state around where its flow points, every tap moved by a
    learned offset and weighted by a learned mask. Half of the groups read the newer state.
    """

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim = config.mid_channels
        self.dim = dim
        self.reach = config.max_residue_magnitude
        self.lean = config.checkpointing == "attention"
        bound = (_TAPS * 2 * dim) ** -0.5
        self.weight = nn.Parameter(torch.empty(dim, 2 * dim, 3, 3).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(dim))
        head = conv3x3(dim, 3 * GROUPS * _TAPS)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        self.conv_offset = nn.ModuleDict(
            {
                "0": conv3x3(3 * dim + 4, dim),
                "2": conv3x3(dim, dim),
                "4": conv3x3(dim, dim),
                "6": head,
            }
        )

    def enter(self, feature: Tensor, guide: Tensor) -> Tensor:
        """The share of a frame's features and flows in the first convolution of the offsets.

        Args:
            feature: `(N, C, H, W)`.
            guide: both flows, `(N, 4, H, W)`.
        """
        first = self._offset_conv("0")
        _, own, _, flows = torch.split(first.weight, [self.dim, self.dim, self.dim, 4], dim=1)
        x = torch.cat((feature, guide), dim=1)
        return F.conv2d(x, torch.cat((own, flows), dim=1), first.bias, padding=1)

    def forward(self, memory: Tensor, warped: Tensor, flow: Tensor, head: Tensor) -> Tensor:
        """Align states.

        Args:
            memory: the states, the newest first, `(N, k, C, H, W)`. A missing second one is zero.
            warped: the states moved along their flows, of the same shape.
            flow: from the current frame to each state's, `(N, k, 2, H, W)`.
            head: what `enter` returned for the current frame.

        Returns:
            `(N, C, H, W)`, float32.
        """
        count = memory.shape[1]
        first, last = self._offset_conv("0"), self._offset_conv("6")
        newer, _, older, _ = torch.split(first.weight, [self.dim, self.dim, self.dim, 4], dim=1)
        entry = torch.cat((newer, older)[:count], dim=1)
        x = F.leaky_relu(head + F.conv2d(warped.flatten(1, 2), entry, padding=1), SLOPE)
        x = F.leaky_relu(self.conv_offset["2"](x), SLOPE)
        x = F.leaky_relu(self.conv_offset["4"](x), SLOPE)
        # Offsets of the newer state's groups, of the older state's, then the masks of both.
        half = GROUPS * _TAPS
        offsets, masks = count * half, count * half // 2
        assert last.bias is not None
        weight: Tensor = last.weight
        bias: Tensor = last.bias
        own_weight: Tensor = self.weight
        if count == 1:
            weight, bias = (
                torch.cat((p[:offsets], p[2 * half : 2 * half + masks])) for p in (weight, bias)
            )
            own_weight = own_weight[:, : self.dim]
        x = F.conv2d(x, weight, bias, padding=1).float()
        offset = torch.unflatten(self.reach * x[:, :offsets].tanh(), 1, (count, -1, 2))
        offset = (offset + flow.flip(2)[:, :, None]).flatten(1, 3)
        return deform_conv3x3(
            memory.flatten(1, 2),
            offset,
            x[:, offsets:].sigmoid(),
            own_weight,
            self.bias,
            self.lean,
        )

    def _offset_conv(self, index: str) -> nn.Conv2d:
        conv = self.conv_offset[index]
        assert isinstance(conv, nn.Conv2d)
        return conv
