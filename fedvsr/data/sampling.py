"""Read training samples: augmented crops of a clip's frames, uint8. B samples, T frames.

Each sample has a seed of its own that decides its crop and augmentation, so samples can be read by
any number of threads in any order.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvsr.data.clips import Clip, Frames
from fedvsr.data.shape import SampleShape
from fedvsr.seeding import derive_seed, generator


@dataclass(frozen=True)
class Draw:
    """One sample to read: its clip, its first frame, and the seed of its random draws."""

    clip: Clip
    start: int
    seed: int


def passes(clips: Sequence[Clip], seed: int, batch_size: int) -> Iterator[list[Draw]]:
    """Yield the batches of endless passes over a client's clips.

    In a pass, one sample starts from every frame of every clip, in random order. The last batch of
    a pass may be smaller.
    """
    samples = [(clip, start) for clip in clips for start in range(clip.num_frames)]
    assert samples, "a client without clips"
    for number in count():
        order = generator(seed, "order", number).permutation(len(samples)).tolist()
        for first in range(0, len(order), batch_size):
            batch = [samples[i] for i in order[first : first + batch_size]]
            yield [
                Draw(clip, start, derive_seed(seed, "sample", number, place))
                for place, (clip, start) in enumerate(batch, first)
            ]


def read_batch(
    draws: Sequence[Draw], shape: SampleShape, pin: bool = False
) -> tuple[Tensor, Tensor]:
    """Read the samples of a batch: `(lq_BTCHW, gt_BTCHW)`, uint8.

    Args:
        draws: samples of clips of one scale, each with at least `shape.span` frames and
            `shape.crop` pixels a side.
        shape: what the samples are made of.
        pin: use page-locked memory, from which a GPU can copy without waiting.
    """
    time = shape.num_frames * (2 if shape.mirror else 1)
    sizes = shape.crop // draws[0].clip.scale, shape.crop
    lq, gt = (
        torch.empty(len(draws), time, 3, size, size, dtype=torch.uint8, pin_memory=pin)
        for size in sizes
    )
    for draw, lq_TCHW, gt_TCHW in zip(draws, lq.numpy(), gt.numpy(), strict=True):
        _read(draw, shape, lq_TCHW, gt_TCHW)
    return lq, gt


def to_float(frames: Tensor, device: torch.device) -> Tensor:
    """Convert uint8 frames to float32 in [0, 1] on a device; pinned ones without waiting."""
    return frames.to(device, non_blocking=frames.is_pinned()).float().div_(255)


def _read(draw: Draw, shape: SampleShape, lq_TCHW: Frames, gt_TCHW: Frames) -> None:
    clip, rng = draw.clip, np.random.default_rng(draw.seed)
    scale, size = clip.scale, shape.crop // clip.scale
    start, latest = draw.start, clip.num_frames - shape.span
    if start > latest and shape.ends == "redraw":
        start = int(rng.integers(latest + 1))
    top = int(rng.integers(clip.height // scale - size + 1))
    left = int(rng.integers(clip.width // scale - size + 1))
    # One decision for all frames, of both resolutions.
    flip_x, flip_y, transpose, backwards = rng.random(4) < 0.5
    last = clip.num_frames - 1
    frames = [last - abs(last - start - k * shape.interval) for k in range(shape.num_frames)]
    if shape.random_reverse and backwards:
        frames.reverse()
    if not shape.augment:
        flip_x = flip_y = transpose = False
    for stored, crop_TCHW, by in ((clip.lq(), lq_TCHW, 1), (clip.gt(), gt_TCHW, scale)):
        rows, columns = (slice(by * first, by * (first + size)) for first in (top, left))
        _announce(stored, frames, rows)
        for frame, crop_CHW in zip(frames, crop_TCHW, strict=False):
            # Copying first and then turning takes half the time of turning in the file's pages.
            crop_HWC = np.ascontiguousarray(stored[frame, rows, columns])
            crop_HWC = _augmented(crop_HWC, flip_x, flip_y, transpose)
            crop_CHW[...] = crop_HWC.transpose(2, 0, 1)
        if shape.mirror:
            crop_TCHW[shape.num_frames :] = crop_TCHW[shape.num_frames - 1 :: -1]


def _announce(stored: Frames, frames: Sequence[int], rows: slice) -> None:
    """Ask the system to load the rows of all frames; its own read-ahead loads whole frames.

    If they are in memory already, this costs nothing.
    """
    mapped: object = stored.base
    if isinstance(stored, np.memmap) and isinstance(mapped, mmap.mmap):
        for begin, end in pages_of(stored, frames, rows):
            mapped.madvise(mmap.MADV_WILLNEED, begin, end - begin)


def pages_of(
    stored: np.memmap[Any, Any], frames: Sequence[int], rows: slice
) -> Iterator[tuple[int, int]]:
    """Begin and end of each frame's rows in the mapping, in bytes; begins are those of pages."""
    first = stored.offset % mmap.ALLOCATIONGRANULARITY
    frame_bytes, row_bytes = stored.strides[:2]
    for frame in frames:
        begin = first + frame * frame_bytes + rows.start * row_bytes
        end = begin + (rows.stop - rows.start) * row_bytes
        yield begin - begin % mmap.PAGESIZE, end


def _augmented(frame_HWC: Frames, flip_x: bool, flip_y: bool, transpose: bool) -> Frames:
    if flip_x:
        frame_HWC = frame_HWC[:, ::-1]
    if flip_y:
        frame_HWC = frame_HWC[::-1]
    return frame_HWC.swapaxes(0, 1) if transpose else frame_HWC
