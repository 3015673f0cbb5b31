"""PSNR of frames. It needs no torch, which takes seconds to load."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Frames = npt.NDArray[np.uint8]
PerFrame = npt.NDArray[np.float64]


def psnr(sr: Frames, gt: Frames) -> PerFrame:
    """Compute the peak signal-to-noise ratio of RGB in dB, peak 255, for each frame.

    Args:
        sr: uint8 RGB `(..., H, W, 3)`.
        gt: the same shape.

    Returns:
        float64 `(...)`, infinite for equal frames.

    Raises:
        ValueError: shapes differ, or the frames are not uint8 with 3 channels.
    """
    require_frames(sr, gt)
    difference = np.subtract(sr, gt, dtype=np.int16)
    mse = np.square(difference, dtype=np.int32).mean(axis=(-3, -2, -1), dtype=np.float64)
    return decibels(mse)


def require_frames(sr: Frames, gt: Frames) -> None:
    """Check that two arrays are uint8 RGB frames `(..., H, W, 3)` of one shape.

    Raises:
        ValueError: they are not.
    """
    if sr.shape != gt.shape:
        raise ValueError(f"frames have different shapes: {sr.shape} and {gt.shape}")
    if gt.ndim < 3 or gt.shape[-1] != 3 or sr.dtype != np.uint8 or gt.dtype != np.uint8:
        raise ValueError(
            f"frames must be uint8 (..., H, W, 3), not {sr.dtype} and {gt.dtype} {gt.shape}"
        )


def decibels(mse: PerFrame) -> PerFrame:
    """PSNR in dB, peak 255, of mean squared errors; infinite for 0."""
    with np.errstate(divide="ignore"):
        return np.asarray(10 * np.log10(255.0**2 / mse))
