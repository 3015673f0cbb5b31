"""PSNR, SSIM and LPIPS as the field reports them: on uint8 frames, no border crop, RGB or luma.

Definitions: `docs/explanation/metrics.md`. Frames are uint8 RGB arrays `(..., H, W, 3)`.
"""

from __future__ import annotations

import warnings
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.errors import UserError

Frames = npt.NDArray[np.uint8]
PerFrame = npt.NDArray[np.float64]

_SSIM_TAPS = 11
_SSIM_SIGMA = 1.5
# Rows of a stripe, whose maps fit in the cache: five times as fast on 720p frames.
_STRIPE = 32
# Columns of a block: enough for a full-speed matrix product, and few enough that the zeros outside
# the band cost less than that saves.
_BLOCK = 64


def psnr(sr: Frames, gt: Frames, luma: bool = False) -> PerFrame:
    """Compute the peak signal-to-noise ratio in dB, peak 255, for each frame.

    Args:
        sr: uint8 RGB `(..., H, W, 3)`.
        gt: the same shape.
        luma: compare BT.601 studio-range Y (16 to 235), not rounded, instead of the three channels.

    Returns:
        float64 `(...)`, infinite for equal frames. A clip's value is the mean over its
        frames, a test set's the mean over its clips.

    Raises:
        ValueError: shapes differ, or the frames are not uint8 with 3 channels.
    """
    _require_frames(sr, gt)
    difference = np.subtract(sr, gt, dtype=np.int16)
    if luma:
        # Linear, so the offset 16 cancels.
        mse = np.square(difference @ _LUMA).mean(axis=(-2, -1))
    else:
        mse = np.square(difference, dtype=np.int32).mean(axis=(-3, -2, -1), dtype=np.float64)
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255.0**2 / mse))


def ssim(sr: Frames, gt: Frames, luma: bool = False) -> PerFrame:
    """Compute structural similarity (Wang et al. 2004) for each frame, the mean over channels.

    Gaussian window of 11 x 11, sigma 1.5, valid region only, C1 = (0.01 * 255)^2,
    C2 = (0.03 * 255)^2.

    Args:
        sr: uint8 RGB `(..., H, W, 3)`, H and W at least 11.
        gt: the same shape.
        luma: as in `psnr`.

    Returns:
        float64 `(...)` in [-1, 1].

    Raises:
        ValueError: shapes differ, or the frames are not uint8 with 3 channels, or are smaller than
            11 x 11.
    """
    _require_frames(sr, gt)
    height, width = gt.shape[-3:-1]
    if min(height, width) < _SSIM_TAPS:
        raise ValueError(f"SSIM needs frames of at least 11 x 11 pixels, not {height} x {width}")
    pairs = zip(sr.reshape(-1, height, width, 3), gt.reshape(-1, height, width, 3), strict=True)
    values = [_ssim_frame(_planes(x, luma), _planes(y, luma)) for x, y in pairs]
    return np.asarray(values).reshape(gt.shape[:-3])


def lpips(sr: Frames, gt: Frames) -> PerFrame:
    """Compute learned perceptual distance (Zhang et al. 2018, AlexNet, version 0.1) for each frame.

    It needs the extra `metrics` and AlexNet's published weights, which torchvision downloads once.

    Args:
        sr: uint8 RGB `(..., H, W, 3)`; it is scaled to [-1, 1], as in the measure's training.
        gt: the same shape.

    Returns:
        float64 `(...)`, 0 for equal frames; lower is more similar.

    Raises:
        UserError: the package is missing, or the weights cannot be downloaded.
    """
    _require_frames(sr, gt)
    network = _lpips_network()
    height, width = gt.shape[-3:-1]
    pairs = zip(sr.reshape(-1, height, width, 3), gt.reshape(-1, height, width, 3), strict=True)
    with torch.inference_mode():
        scaled = ([_planes(f, False)[None].float() / 127.5 - 1 for f in pair] for pair in pairs)
        values = [float(network(x, y)) for x, y in scaled]
    return np.asarray(values).reshape(gt.shape[:-3])


@lru_cache(maxsize=1)
def _lpips_network() -> torch.nn.Module:
    try:
        import lpips as package
    except ImportError:
        raise UserError(
            "evaluation.lpips needs the package lpips: pip install 'fedvsr[metrics]'"
        ) from None
    try:
        with warnings.catch_warnings():
            # The package calls torchvision's AlexNet in a way about which newer releases warn.
            warnings.simplefilter("ignore")
            network: torch.nn.Module = package.LPIPS(net="alex", verbose=False)
    except OSError as error:
        raise UserError(
            f"AlexNet's weights cannot be downloaded for evaluation.lpips ({error}); put "
            f"alexnet-owt-7be5be79.pth into {torch.hub.get_dir()}/checkpoints"
        ) from None
    return network.eval()


_LUMA = np.array([65.481, 128.553, 24.966]) / 255


def _require_frames(sr: Frames, gt: Frames) -> None:
    if sr.shape != gt.shape:
        raise ValueError(f"frames have different shapes: {sr.shape} and {gt.shape}")
    if gt.ndim < 3 or gt.shape[-1] != 3 or sr.dtype != np.uint8 or gt.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 (..., H, W, 3), not {sr.dtype} and {gt.dtype} {gt.shape}"
        )


def _planes(frame: Frames, luma: bool) -> Tensor:
    """A frame's channels, or its luma, as float64 (channels, H, W)."""
    values = frame.astype(np.float64)
    if luma:
        return torch.from_numpy(16 + values @ _LUMA)[None]
    return torch.from_numpy(values).permute(2, 0, 1).contiguous()


def _ssim_frame(x: Tensor, y: Tensor) -> float:
    """Mean SSIM of two frames, `(channels, H, W)` each."""
    num_rows, num_columns = x.shape[-2] - _SSIM_TAPS + 1, x.shape[-1] - _SSIM_TAPS + 1
    total = 0.0
    for top in range(0, num_rows, _STRIPE):
        rows = min(_STRIPE, num_rows - top)
        stripe = slice(top, top + rows + _SSIM_TAPS - 1)
        total += _ssim_sum(x[:, stripe], y[:, stripe])
    return total / (x.shape[0] * num_rows * num_columns)


def _ssim_sum(x: Tensor, y: Tensor) -> float:
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    # The two variances appear only as their sum, so four blurs suffice instead of five.
    mu_x, mu_y, square, product = _blur(torch.stack([x, y, x * x + y * y, x * y]))
    mu_xy, mu_square = mu_x * mu_y, mu_x.square() + mu_y.square()
    numerator = (2 * mu_xy + c1) * (2 * (product - mu_xy) + c2)
    denominator = (mu_square + c1) * (square - mu_square + c2)
    return float((numerator / denominator).sum())


def _blur(x: Tensor) -> Tensor:
    """Blur the last two axes by the Gaussian window, valid region only.

    The blur is a product with banded matrices, down the stripe and then along overlapping blocks of
    columns; a float64 convolution takes five times as long.
    """
    x = _window_matrix(x.shape[-2] - _SSIM_TAPS + 1).T @ x
    num_out = x.shape[-1] - _SSIM_TAPS + 1
    x = F.pad(x, (0, -num_out % _BLOCK))
    blocks = x.unfold(-1, _BLOCK + _SSIM_TAPS - 1, _BLOCK)
    return (blocks @ _window_matrix(_BLOCK)).flatten(-2)[..., :num_out]


@lru_cache(maxsize=4 * _STRIPE)
def _window_matrix(num_out: int) -> Tensor:
    """Banded matrix (num_out + 10, num_out): each column holds the window's taps, one row lower."""
    offset = torch.arange(_SSIM_TAPS, dtype=torch.float64) - _SSIM_TAPS // 2
    window = torch.exp(-offset.square() / (2 * _SSIM_SIGMA**2))
    window = window / window.sum()
    matrix = torch.zeros(num_out + _SSIM_TAPS - 1, num_out, dtype=torch.float64)
    for column in range(num_out):
        matrix[column : column + _SSIM_TAPS, column] = window
    return matrix
