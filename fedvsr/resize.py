"""Bicubic resizing of tensors by integer factors, as MATLAB's `imresize(..., 'bicubic')`.

The kernel is Keys' cubic with a = -0.5, widened by the scale when shrinking. Edges are continued by
mirroring with the edge pixel repeated.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.mirror import mirrored

# The cubic reaches 2 input pixels when enlarging, and 2 output pixels when shrinking.
_SUPPORT = 2


def downscale_planes(planes: Tensor, scale: int) -> Tensor:
    """Reduce float `(N, C, H, W)` to `(N, C, H / scale, W / scale)`.

    H and W must be multiples of `scale`.
    """
    padded = _padded(planes, _SUPPORT * scale)
    small = F.interpolate(
        padded, scale_factor=1 / scale, mode="bicubic", align_corners=False, antialias=True
    )
    return small[..., _SUPPORT:-_SUPPORT, _SUPPORT:-_SUPPORT]


def upscale_planes(planes: Tensor, scale: int) -> Tensor:
    """Enlarge float `(N, C, H, W)` to `(N, C, scale * H, scale * W)`."""
    padded = _padded(planes, _SUPPORT)
    # antialias has nothing to smooth here; it selects a = -0.5 (without it torch takes -0.75).
    large = F.interpolate(
        padded, scale_factor=scale, mode="bicubic", align_corners=False, antialias=True
    )
    edge = _SUPPORT * scale
    return large[..., edge:-edge, edge:-edge]


def _padded(planes: Tensor, pad: int) -> Tensor:
    """Continue both axes by `pad` pixels on either side; see `mirrored`."""
    for axis in (-2, -1):
        n = planes.shape[axis]
        positions = torch.arange(-pad, n + pad, device=planes.device)
        planes = planes.index_select(axis, mirrored(positions, n))
    return planes
