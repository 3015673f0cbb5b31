"""How low-resolution frames are made (BI), and the baseline: bicubic resizing of frames."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.resize import downscale_planes, upscale_planes

FloatFrames = npt.NDArray[np.floating]


def bicubic_downscale(frames: FloatFrames, scale: int = 4) -> FloatFrames:
    """Shrink `(..., H, W, 3)` float frames by an integer factor, antialiased.

    H and W are first cropped (bottom, right) to multiples of `scale`. The dtype is kept; values may
    leave the input's range slightly, as the cubic has negative lobes.

    Raises:
        UserError: the frames are smaller than one output pixel.
    """
    height, width = (n - n % scale for n in frames.shape[-3:-1])
    if not height or not width:
        raise UserError(f"frames of {frames.shape[-3]} x {frames.shape[-2]} are below x{scale}")
    planes = _to_planes(frames[..., :height, :width, :])
    return _from_planes(downscale_planes(planes, scale), frames)


def bicubic_upscale(frames: FloatFrames, scale: int = 4) -> FloatFrames:
    """Enlarge `(..., H, W, 3)` float frames by an integer factor. The dtype is kept."""
    return _from_planes(upscale_planes(_to_planes(frames), scale), frames)


def quantise(frames: FloatFrames) -> npt.NDArray[np.uint8]:
    """Float frames in [0, 1] to uint8: clamped, times 255, rounded."""
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def _to_planes(frames: FloatFrames) -> Tensor:
    height, width, channels = frames.shape[-3:]
    flat = np.ascontiguousarray(frames).reshape(-1, height, width, channels)
    return torch.from_numpy(flat).permute(0, 3, 1, 2)


def _from_planes(planes: Tensor, like: FloatFrames) -> FloatFrames:
    frames = planes.permute(0, 2, 3, 1).contiguous().numpy()
    return frames.reshape(*like.shape[:-3], *frames.shape[1:])
