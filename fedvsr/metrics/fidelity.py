"""PSNR and SSIM as the field reports them: on uint8 frames, no border crop, of RGB and of luma.

Definitions: `docs/explanation/metrics.md`. Frames are uint8 RGB arrays. Luma is BT.601
studio-range Y (16 to 235), not rounded.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.metrics.psnr import Frames as Frames
from fedvsr.metrics.psnr import decibels
from fedvsr.metrics.psnr import psnr as psnr
from fedvsr.metrics.psnr import require_frames as require_frames

MIN_SIDE = 11
"""Pixels a side that SSIM's window needs."""
_SSIM_SIGMA = 1.5
# Rows of a stripe, whose maps fit in the cache: five times as fast on 720p frames.
_STRIPE = 32
# Columns of a block: enough for a full-speed matrix product, and few enough that the zeros outside
# the band cost less than that saves.
_BLOCK = 64
_LUMA = torch.tensor([65.481, 128.553, 24.966], dtype=torch.float64) / 255
_LUMA_OFFSET = 16.0


def fidelity(sr: Frames, gt: Frames) -> dict[str, float]:
    """Compute PSNR and SSIM (Wang et al. 2004) of a frame, of RGB and of luma.

    PSNR has the peak 255. SSIM has a Gaussian window of 11 x 11, sigma 1.5, valid region only,
    C1 = (0.01 * 255)^2 and C2 = (0.03 * 255)^2; that of RGB is the mean over the channels.

    Args:
        sr: uint8 RGB `(H, W, 3)`, H and W at least 11.
        gt: the same shape.

    Returns:
        `psnr_db` and `psnr_y_db`, infinite for equal frames, `ssim` and `ssim_y` in [-1, 1].

    Raises:
        ValueError: shapes differ, or the frames are not uint8 with 3 channels, or are smaller than
            11 x 11.
    """
    require_frames(sr, gt)
    height, width = gt.shape[:2]
    if min(height, width) < MIN_SIDE:
        raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, not {height} x {width}")
    num_rows, num_columns = height - MIN_SIDE + 1, width - MIN_SIDE + 1
    # Sums over the pixels, of R, G, B and Y.
    squares, similarity = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    for top in range(0, num_rows, _STRIPE):
        rows = min(_STRIPE, num_rows - top)
        x, y = (_planes(frame[top : top + rows + MIN_SIDE - 1]) for frame in (sr, gt))
        # Neighbouring stripes share rows, which count once.
        own = slice(0, rows if top + rows < num_rows else None)
        squares += (x[:, own] - y[:, own]).square().sum((1, 2))
        similarity += _similarity_sums(x, y)
    pixels = height * width
    mse = [float(squares[:3].sum()) / (3 * pixels), float(squares[3]) / pixels]
    psnr_db = decibels(np.array(mse))
    similarity /= num_rows * num_columns
    return {
        "psnr_db": float(psnr_db[0]),
        "ssim": float(similarity[:3].mean()),
        "psnr_y_db": float(psnr_db[1]),
        "ssim_y": float(similarity[3]),
    }


def luma(frame: Frames) -> npt.NDArray[np.float64]:
    """BT.601 studio-range Y (H, W) of a frame, 16 to 235, not rounded."""
    return np.asarray(_planes(frame)[3].numpy())


def _planes(frame: Frames) -> Tensor:
    """R, G, B and Y of a frame, float64 (4, H, W)."""
    values = np.empty((4, *frame.shape[:2]))
    values[:3] = frame.transpose(2, 0, 1)
    planes = torch.from_numpy(values)
    planes[3] = _luma(planes[:3])
    return planes


def _luma(rgb: Tensor) -> Tensor:
    """Y (H, W) of the planes of R, G and B."""
    red, green, blue = _LUMA.tolist()
    return torch.add(_LUMA_OFFSET, red * rgb[0]).add_(rgb[1], alpha=green).add_(rgb[2], alpha=blue)


def _similarity_sums(x: Tensor, y: Tensor) -> Tensor:
    """Sums over the pixels of the SSIM maps (4,) of two stripes of planes (4, rows, W).

    The two variances appear only as their sum, so four blurs a channel suffice instead of five. The
    mean of luma follows from the means of R, G and B, so luma needs two: 14 blurs in all, where RGB
    alone needs 12.
    """
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    blurred = _blur(torch.cat([x[:3], y[:3], x * x + y * y, x * y]))
    mu_x, mu_y = _with_luma(blurred[:3]), _with_luma(blurred[3:6])
    square, product = blurred[6:10], blurred[10:]
    mu_xy, mu_square = mu_x * mu_y, mu_x.square() + mu_y.square()
    numerator = (2 * mu_xy + c1) * (2 * (product - mu_xy) + c2)
    denominator = (mu_square + c1) * (square - mu_square + c2)
    return (numerator / denominator).sum((1, 2))


def _with_luma(rgb: Tensor) -> Tensor:
    return torch.cat([rgb, _luma(rgb)[None]])


def _blur(x: Tensor) -> Tensor:
    """Blur the last two axes by the Gaussian window, valid region only.

    The blur is a product with banded matrices, down the stripe and then along overlapping blocks of
    columns; a float64 convolution takes five times as long.
    """
    x = _window_matrix(x.shape[-2] - MIN_SIDE + 1).T @ x
    num_out = x.shape[-1] - MIN_SIDE + 1
    x = F.pad(x, (0, -num_out % _BLOCK))
    blocks = x.unfold(-1, _BLOCK + MIN_SIDE - 1, _BLOCK)
    return (blocks @ _window_matrix(_BLOCK)).flatten(-2)[..., :num_out]


@lru_cache(maxsize=4 * _STRIPE)
def _window_matrix(num_out: int) -> Tensor:
    """Banded matrix (num_out + 10, num_out): each column holds the window's taps, one row lower."""
    offset = torch.arange(MIN_SIDE, dtype=torch.float64) - MIN_SIDE // 2
    window = torch.exp(-offset.square() / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()
    matrix = torch.zeros(num_out + MIN_SIDE - 1, num_out, dtype=torch.float64)
    for column in range(num_out):
        matrix[column : column + MIN_SIDE, column] = window
    return matrix
