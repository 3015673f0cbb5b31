"""Make low-resolution frames (BI, BD), and enlarge frames by bicubic resizing, the baseline.

BI is MATLAB's antialiased bicubic reduction. BD is a Gaussian blur of sigma 1.6, of which every
`scale`-th pixel is taken. It is centred in the low-resolution pixel's block, has 12 taps at even
scales (RDN's 7 at x3) and repeats edge pixels, as in the inputs of Vid4 and Vimeo-90K on which VRT,
RVRT and IART report results.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.resize import downscale_planes, upscale_planes

FloatFrames = npt.NDArray[np.floating]
Kind = Literal["bi", "bd"]

_SIGMA = 1.6
# Number of taps by scale. Even numbers have their middle between two pixels, as even blocks have.
_TAPS = {2: 12, 3: 7, 4: 12, 8: 12}


def degrade(frames: npt.NDArray[np.uint8], kind: Kind, scale: int) -> npt.NDArray[np.uint8]:
    """Reduce `(T, H, W, 3)` uint8 frames to uint8, as published data sets store them.

    H and W are first cropped (bottom, right) to multiples of `scale`. Frames are reduced one by
    one, so that memory does not grow with T.

    Raises:
        UserError: the frames are smaller than one output pixel, or BD has no such scale.
    """
    shrink = bicubic_downscale if kind == "bi" else gaussian_downscale
    return np.stack([quantise(shrink(rgb.astype(np.float32) / 255, scale)) for rgb in frames])


def bicubic_downscale(frames: FloatFrames, scale: int = 4) -> FloatFrames:
    """Shrink `(..., H, W, 3)` float frames by an integer factor, antialiased.

    H and W are first cropped (bottom, right) to multiples of `scale`. The dtype is kept. Values may
    leave the input's range slightly, because the cubic has negative lobes.

    Raises:
        UserError: the frames are smaller than one output pixel.
    """
    return _from_planes(downscale_planes(_to_planes(_cropped(frames, scale)), scale), frames)


def gaussian_downscale(frames: FloatFrames, scale: int = 4) -> FloatFrames:
    """Blur `(..., H, W, 3)` float frames and take every `scale`-th pixel (BD).

    H and W are first cropped (bottom, right) to multiples of `scale`. The dtype is kept.

    Raises:
        UserError: the frames are smaller than one output pixel, or the scale is not 2, 3, 4 or 8.
    """
    if scale not in _TAPS:
        raise UserError(
            f"degradation bd exists for x{', x'.join(map(str, _TAPS))}, not x{scale}; choose bi"
        )
    taps = _TAPS[scale]
    planes = _to_planes(_cropped(frames, scale))
    offsets = torch.arange(taps, dtype=planes.dtype) - (taps - 1) / 2
    weights = torch.exp(offsets.square() / (-2 * _SIGMA**2))
    weights /= weights.sum()
    pad = (taps - scale) // 2
    single = F.pad(planes.flatten(0, 1)[:, None], (pad,) * 4, mode="replicate")
    rows = F.conv2d(single, weights.view(1, 1, taps, 1), stride=(scale, 1))
    small = F.conv2d(rows, weights.view(1, 1, 1, taps), stride=(1, scale))
    return _from_planes(small.view(*planes.shape[:2], *small.shape[2:]), frames)


def bicubic_upscale(frames: FloatFrames, scale: int = 4) -> FloatFrames:
    """Enlarge `(..., H, W, 3)` float frames by an integer factor. The dtype is kept."""
    return _from_planes(upscale_planes(_to_planes(frames), scale), frames)


def quantise(frames: FloatFrames) -> npt.NDArray[np.uint8]:
    """Convert float frames in [0, 1] to uint8: clamp, multiply by 255, round."""
    return np.rint(np.clip(frames, 0, 1) * 255).astype(np.uint8)


def _cropped(frames: FloatFrames, scale: int) -> FloatFrames:
    height, width = (n - n % scale for n in frames.shape[-3:-1])
    if not height or not width:
        raise UserError(
            f"frames of {frames.shape[-2]} x {frames.shape[-3]} pixels are too small for x{scale}"
        )
    return frames[..., :height, :width, :]


def _to_planes(frames: FloatFrames) -> Tensor:
    height, width, channels = frames.shape[-3:]
    flat = np.ascontiguousarray(frames).reshape(-1, height, width, channels)
    return torch.from_numpy(flat).permute(0, 3, 1, 2)


def _from_planes(planes: Tensor, like: FloatFrames) -> FloatFrames:
    frames = planes.permute(0, 2, 3, 1).contiguous().numpy()
    return frames.reshape(*like.shape[:-3], *frames.shape[1:])
