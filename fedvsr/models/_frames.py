"""Layers and loops that see one frame at a time."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Low-resolution pixels that a loop maps at once.
_CHUNK_PIXELS = 2**15


def per_frame(
    function: Callable[..., Tensor],
    clips: Sequence[Tensor],
    device: torch.device,
    home: torch.device,
) -> Tensor:
    """Map all frames of clips in chunks, so that memory does not hold all of them at once.

    Args:
        function: maps frames `(N, c, H, W)`, one tensor for each clip, to `(N, C, H', W')`.
        clips: `(B, T, c, H, W)` each, of equal H and W.
        device: the device that computes.
        home: the device that keeps the results.

    Returns:
        `(B, T, C, H', W')`.
    """
    batch, _, _, height, width = clips[0].shape
    step = max(1, _CHUNK_PIXELS // (height * width))
    parts = zip(*(torch.split(clip.flatten(0, 1), step) for clip in clips), strict=True)
    mapped = [function(*(frame.to(device) for frame in part)).to(home) for part in parts]
    return torch.unflatten(torch.cat(mapped), 0, (batch, -1))


class FrameConv(nn.Conv3d):
    """A convolution within frames `(N, C, H, W)`, zeros beyond the border.

    The released checkpoints give its weight an axis of time, of length 1.
    """

    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__(inputs, outputs, (1, size, size))
        self.margin = size // 2

    def forward(self, x_NCHW: Tensor) -> Tensor:
        """`(N, inputs, H, W)` to `(N, outputs, H, W)`."""
        return F.conv2d(x_NCHW, self.weight.squeeze(2), self.bias, padding=self.margin)
