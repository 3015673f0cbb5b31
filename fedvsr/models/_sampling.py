"""Bilinear sampling of images, with gradients that are summed in a fixed order on request.

N images, C channels, H x W their height and width, h x w the grid's.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.graphs import cached_tensors


def grid_sample(
    x_NCHW: Tensor, grid_Nhw2: Tensor, padding: Literal["zeros", "border"] = "zeros"
) -> Tensor:
    """`torch.nn.functional.grid_sample`, bilinear with aligned corners.

    On GPUs its backward pass sums gradients in the order in which threads happen to run. If
    `torch.use_deterministic_algorithms` is on, this function takes a slower path of fixed order.

    Args:
        x_NCHW: the images.
        grid_Nhw2: positions x, y, from -1 to 1 inside the image; of the dtype of `x`. What NaN,
            from a network that diverged, reads is not defined.
        padding: "zeros" reads 0 outside the image; "border" clamps the position.

    Returns:
        `(N, C, h, w)`.
    """
    if x_NCHW.is_cuda and torch.are_deterministic_algorithms_enabled():
        return gathered(x_NCHW, grid_Nhw2, padding)
    if x_NCHW.is_cpu and padding == "border":
        # There PyTorch makes an address of NaN, and the process crashes.
        grid_Nhw2 = grid_Nhw2.nan_to_num()
    return F.grid_sample(x_NCHW, grid_Nhw2, "bilinear", padding, align_corners=True)


def pixel_index(position: Tensor, size: int) -> Tensor:
    """Whole positions as indices of pixels, clamped to the image; NaN gives 0.

    Args:
        position: whole numbers, in pixels, of any shape.
        size: pixels of the image along this axis.

    Returns:
        int64 from 0 to `size - 1`, of the same shape.
    """
    # Clamped as floats: a huge position has no integer. An index that NaN gives would lie outside,
    # which on a GPU ends all work of the process.
    return position.clamp(0, size - 1).nan_to_num().long()


def sampling_grid(places: Tensor, height: int, width: int) -> Tensor:
    """Positions x, y in pixels of an image, `(..., 2)`, as `grid_sample` takes them."""
    return places / _half_sides(height, width, places.device) - 1.0


@cached_tensors(maxsize=64)
def pixel_places(height: int, width: int, device: torch.device) -> Tensor:
    """Column and row of each pixel, float32 `(H, W, 2)`."""
    axes = (torch.arange(n, device=device, dtype=torch.float32) for n in (height, width))
    rows, columns = torch.meshgrid(*axes, indexing="ij")
    return torch.stack((columns, rows), dim=-1)


@cached_tensors(maxsize=64)
def tap_places(taps: tuple[int, int], height: int, width: int, device: torch.device) -> Tensor:
    """Column and row of each tap of a window around each pixel, float32 `(P, H, W, 2)`.

    Args:
        taps: rows and columns of the window, P in all; taps are counted row by row.
        height: rows of the image.
        width: columns of the image.
        device: the device of the result.
    """
    window = pixel_places(*taps, device).flatten(0, 1)
    middle = torch.tensor([taps[1] // 2, taps[0] // 2], device=device)
    return pixel_places(height, width, device) + (window - middle)[:, None, None]


@cached_tensors(maxsize=64)
def _half_sides(height: int, width: int, device: torch.device) -> Tensor:
    return torch.tensor([max(side - 1, 1) / 2 for side in (width, height)], device=device)


def gathered(x_NCHW: Tensor, grid_Nhw2: Tensor, padding: Literal["zeros", "border"]) -> Tensor:
    """The slower path of `grid_sample`: reads each position's four pixels by their index.

    The gradient of such a lookup is summed in the order of sorted indices.
    """
    count, channels, height, width = x_NCHW.shape
    x, y = (
        (grid_Nhw2[..., axis] + 1) * ((size - 1) / 2) for axis, size in enumerate((width, height))
    )
    if padding == "border":
        x, y = _clamped(x, width), _clamped(y, height)
    left, top = x.detach().floor(), y.detach().floor()
    right_part, lower_part = x - left, y - top
    pixels = x_NCHW.permute(0, 2, 3, 1).reshape(-1, channels)
    first = torch.arange(count, device=x.device)[:, None, None] * (height * width)
    total: Tensor | None = None
    for row, row_part in ((top, 1 - lower_part), (top + 1, lower_part)):
        for column, part in ((left, 1 - right_part), (left + 1, right_part)):
            inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
            at = pixel_index(row, height) * width + pixel_index(column, width)
            weight = torch.where(inside, row_part * part, 0.0)
            read = F.embedding(first + at, pixels) * weight[..., None]
            total = read if total is None else total + read
    assert total is not None
    return total.permute(0, 3, 1, 2)


def _clamped(position: Tensor, size: int) -> Tensor:
    """Clamp to the image; as in `grid_sample`, a clamped position has no gradient."""
    inside = (position > 0) & (position < size - 1)
    return torch.where(inside, position, position.detach().clamp(0, size - 1))
