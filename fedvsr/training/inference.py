"""Super-resolve a whole clip with any network, in overlapping tiles of space and time."""

from __future__ import annotations

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from fedvsr.data.clips import Frames
from fedvsr.models._spec import ModelSpec
from fedvsr.section import Section


class TileConfig(Section):
    """Tiles of inference, in frames and low-resolution pixels. Overlaps are averaged."""

    frames: int | None = Field(None, ge=1, description="Frames a tile (default: the whole clip).")
    size: int | None = Field(
        None, ge=8, description="Height and width of a tile (default: the whole frame)."
    )
    overlap_frames: int = Field(2, ge=0, description="Frames that neighbouring tiles share.")
    overlap: int = Field(16, ge=0, description="Pixels that neighbouring tiles share.")

    def model_post_init(self, _: object) -> None:
        """Check that tiles move on."""
        if self.frames is not None and self.overlap_frames >= self.frames:
            raise ValueError(f"overlap_frames = {self.overlap_frames} must be below frames")
        if self.size is not None and self.overlap >= self.size:
            raise ValueError(f"overlap = {self.overlap} must be below size = {self.size}")


def super_resolve(
    network: nn.Module, spec: ModelSpec, lq_THWC: Frames, tiles: TileConfig
) -> Frames:
    """Super-resolve a clip of any length and size.

    Frames are padded by mirroring to what the network takes and cropped afterwards.

    Args:
        network: maps (1, T, 3, H, W) in [0, 1] to (1, T, 3, scale * H, scale * W).
        spec: its size rules.
        lq_THWC: uint8 RGB low-resolution frames.
        tiles: the tiles.

    Returns:
        uint8 RGB (T, scale * H, scale * W, 3), clamped and rounded.
    """
    device = next(network.parameters()).device
    num_frames, height, width = lq_THWC.shape[:3]
    shape = (
        _multiple_of(max(num_frames, spec.min_frames), spec.frames_multiple),
        _multiple_of(max(height, spec.min_size), spec.size_multiple),
        _multiple_of(max(width, spec.min_size), spec.size_multiple),
    )
    steps = (spec.frames_multiple, spec.size_multiple, spec.size_multiple)
    least = (spec.min_frames, spec.min_size, spec.min_size)
    wanted = (tiles.frames, tiles.size, tiles.size)
    overlaps = (tiles.overlap_frames, tiles.overlap, tiles.overlap)
    tile = tuple(
        n if want is None else min(n, _multiple_of(max(want, low), step))
        for n, want, low, step in zip(shape, wanted, least, steps, strict=True)
    )
    lq = _mirrored(torch.from_numpy(np.array(lq_THWC)), shape)
    scale = spec.scale
    total = torch.zeros(shape[0], 3, shape[1] * scale, shape[2] * scale)
    count = torch.zeros(shape[0], 1, shape[1] * scale, shape[2] * scale)
    with torch.inference_mode():
        for t, y, x in _starts(shape, tile, overlaps):
            part = lq[t : t + tile[0], y : y + tile[1], x : x + tile[2]]
            lq_BTCHW = part.permute(0, 3, 1, 2)[None].to(device).float().div_(255)
            sr_TCHW = network(lq_BTCHW)[0].float().cpu()
            place = (
                slice(t, t + tile[0]),
                slice(None),
                slice(y * scale, (y + tile[1]) * scale),
                slice(x * scale, (x + tile[2]) * scale),
            )
            total[place] += sr_TCHW
            count[place] += 1
    mean = (total / count)[:num_frames, :, : height * scale, : width * scale]
    frames: Frames = (mean.clamp_(0, 1) * 255).round_().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return np.ascontiguousarray(frames)


def _multiple_of(n: int, step: int) -> int:
    return -(-n // step) * step


def _mirrored(frames: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Extend (T, H, W, 3) at the end of each axis to `shape` by mirroring, the edge repeated."""
    for axis, n in enumerate(shape):
        have = frames.shape[axis]
        if n > have:
            position = torch.arange(n) % (2 * have)
            index = torch.minimum(position, 2 * have - 1 - position)
            frames = frames.index_select(axis, index)
    return frames


def _starts(
    shape: tuple[int, ...], tile: tuple[int, ...], overlaps: tuple[int, ...]
) -> list[tuple[int, int, int]]:
    """Corners of the tiles. The last one of an axis ends at its end, so every tile is whole."""
    axes = [
        sorted({*range(0, n - size, max(1, size - overlap)), n - size})
        for n, size, overlap in zip(shape, tile, overlaps, strict=True)
    ]
    return [(t, y, x) for t in axes[0] for y in axes[1] for x in axes[2]]
