"""Modulated deformable 3 x 3 convolution (Zhu et al. 2019) from PyTorch's own operations.

N images, C channels, H x W their height and width, G offset groups of consecutive channels.
torchvision's `deform_conv2d` gives the same numbers, but runs on one core of a CPU and takes five
times as long.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fedvsr.models._recompute import recompute_plain
from fedvsr.models._sampling import grid_sample

_TAPS = 9
# Sampled values of the images that are convolved together, at most: on a CPU, and on a GPU, where
# the host's time for each chunk counts more than memory.
_CHUNK_SAMPLES = 2**24
_GPU_CHUNK_SAMPLES = 2**26


def deform_conv3x3(
    x_NCHW: Tensor,
    offset: Tensor,
    mask: Tensor,
    weight: Tensor,
    bias: Tensor,
    lean: bool = False,
) -> Tensor:
    """A 3 x 3 convolution, stride 1, padding 1, with displaced and weighted taps.

    It computes in float32, also under autocast, because positions need the precision.

    Args:
        x_NCHW: input; pixels outside count as zero.
        offset: `(N, G * 9 * 2, H, W)`, for each group and tap (row-major) dy, then dx, in pixels.
        mask: `(N, G * 9, H, W)`, factors of the taps.
        weight: `(outputs, C / g, 3, 3)`: the convolution has g groups, those of the channel counts.
        bias: `(outputs,)`.
        lean: sample again in the backward pass instead of keeping nine values for each input.

    Returns:
        `(N, outputs, H, W)`, float32.
    """
    chunk_samples = _CHUNK_SAMPLES if x_NCHW.is_cpu else _GPU_CHUNK_SAMPLES
    step = max(1, chunk_samples // (_TAPS * x_NCHW[0].numel()))
    parts = []
    with torch.autocast(x_NCHW.device.type, enabled=False):
        chunks = (torch.split(t.float(), step) for t in (x_NCHW, offset, mask))
        for chunk in zip(*chunks, strict=True):
            args = (*chunk, weight.float())
            parts.append(recompute_plain(_convolve, *args) if lean else _convolve(*args))
        return torch.cat(parts) + bias.float()[:, None, None]


def _convolve(x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    count, channels, height, width = x.shape
    groups = mask.shape[1] // _TAPS
    columns = grid_sample(
        x.reshape(count * groups, channels // groups, height, width),
        _sampling_grid(offset, groups),
    )
    columns = columns.reshape(count, groups, -1, _TAPS, height * width)
    columns = columns * mask.reshape(count, groups, 1, _TAPS, height * width)
    conv_groups = channels // weight.shape[1]
    kernels = weight.view(conv_groups, len(weight) // conv_groups, -1)
    out = torch.matmul(kernels, columns.reshape(count, conv_groups, -1, height * width))
    return out.view(count, -1, height, width)


def _sampling_grid(offset: Tensor, groups: int) -> Tensor:
    """Positions for `grid_sample`, `(N * G, 9 * H, W, 2)`: x, y, in [-1, 1] inside the image."""
    count, _, height, width = offset.shape
    rows = torch.arange(height, device=offset.device, dtype=torch.float32)
    columns = torch.arange(width, device=offset.device, dtype=torch.float32)
    steps = torch.arange(3, device=offset.device, dtype=torch.float32) - 1
    by_tap = offset.reshape(count * groups, _TAPS, 2, height, width)
    # Tap 3 * i + j looks i - 1 rows down and j - 1 columns to the right.
    y = by_tap[:, :, 0] + (steps.repeat_interleave(3)[:, None, None] + rows[:, None])
    x = by_tap[:, :, 1] + (steps.repeat(3)[:, None, None] + columns)
    grid = torch.stack((2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1), dim=-1)
    return grid.view(count * groups, _TAPS * height, width, 2)
