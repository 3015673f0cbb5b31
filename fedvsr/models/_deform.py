"""Modulated deformable 3 x 3 convolution (Zhu et al. 2019) from PyTorch's own operations.

N images, C channels, H x W their height and width, G offset groups of consecutive channels.
torchvision's `deform_conv2d` gives the same numbers, but runs on one core of a CPU, takes four
times as long there (docs/design/0020-basicvsrpp.md), and has no deterministic backward pass on a
GPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from fedvsr.models._recompute import recompute_plain
from fedvsr.models._sampling import grid_sample, sampling_grid, tap_places

_TAPS = 9
# Sampled values of the images, or of rows of one, that are convolved together, at most: on a CPU,
# and on a GPU, where the host's time for each chunk counts more than memory.
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
    num_rows = max(1, chunk_samples // (_TAPS * x_NCHW[0, :, 0].numel()))
    parts = []
    with torch.autocast(x_NCHW.device.type, enabled=False):
        chunks = (_split(t.float(), step, 0) for t in (x_NCHW, offset, mask))
        for x, *fields in zip(*chunks, strict=True):
            strips = []
            for i, strip in enumerate(zip(*(_split(f, num_rows, 2) for f in fields), strict=True)):
                convolve, args = partial(_convolve, i * num_rows), (x, *strip, weight.float())
                strips.append(recompute_plain(convolve, *args) if lean else convolve(*args))
            parts.append(_join(strips, 2))
        return _join(parts, 0) + bias.float()[:, None, None]


# One chunk is the whole: its backward pass would copy it.
def _split(x: Tensor, size: int, dim: int) -> Sequence[Tensor]:
    return torch.split(x, size, dim) if x.shape[dim] > size else (x,)


def _join(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _convolve(first_row: int, x: Tensor, offset: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """The convolution's rows from `first_row` on, as many as `offset` and `mask` have."""
    count, channels, height, width = x.shape
    groups = mask.shape[1] // _TAPS
    columns = grid_sample(
        x.reshape(count * groups, channels // groups, height, width),
        _sampling_grid(offset, groups, first_row, height),
    )
    columns = columns.reshape(count, groups, -1, _TAPS, mask.shape[2] * width)
    columns = columns * mask.reshape(count, groups, 1, _TAPS, mask.shape[2] * width)
    conv_groups = channels // weight.shape[1]
    kernels = weight.view(conv_groups, len(weight) // conv_groups, -1)
    out = torch.matmul(kernels, columns.reshape(count, conv_groups, -1, mask.shape[2] * width))
    return out.view(count, -1, mask.shape[2], width)


def _sampling_grid(offset: Tensor, groups: int, first_row: int, height: int) -> Tensor:
    """Positions in images of a `height` for `grid_sample`, `(N * G, 9 * h, W, 2)`.

    They are x, y, in [-1, 1] inside the image, for the h rows of `offset` from `first_row` on.
    """
    count, _, num_rows, width = offset.shape
    shift = offset.reshape(count * groups, _TAPS, 2, num_rows, width).flip(2)
    places = tap_places((3, 3), height, width, offset.device)[:, first_row : first_row + num_rows]
    grid = sampling_grid(places + shift.permute(0, 1, 3, 4, 2), height, width)
    return grid.view(count * groups, _TAPS * num_rows, width, 2)
