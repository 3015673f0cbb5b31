"""What sees one frame at a time needs no whole clip in memory at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

# Low-resolution pixels taken at once.
_CHUNK_PIXELS = 2**15


def per_frame(
    function: Callable[..., Tensor],
    clips: Sequence[Tensor],
    device: torch.device,
    home: torch.device,
) -> Tensor:
    """Map all frames of clips, some of them at a time.

    Args:
        function: maps frames `(N, c, H, W)`, one tensor of each clip, to `(N, C, H', W')`.
        clips: `(B, T, c, H, W)` each, of equal H and W.
        device: where to compute.
        home: where to keep the results.

    Returns:
        `(B, T, C, H', W')`.
    """
    batch, _, _, height, width = clips[0].shape
    step = max(1, _CHUNK_PIXELS // (height * width))
    parts = zip(*(torch.split(clip.flatten(0, 1), step) for clip in clips), strict=True)
    mapped = [function(*(frame.to(device) for frame in part)).to(home) for part in parts]
    return torch.unflatten(torch.cat(mapped), 0, (batch, -1))
