"""Training samples: crops of consecutive frames, augmented. T frames, values in [0, 1]."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from fedvsr.data.clips import Clip, Frames


def epoch(
    clips: Sequence[Clip],
    rng: np.random.Generator,
    *,
    batch_size: int,
    num_frames: int,
    crop: int,
    augment: bool,
    mirror: bool = False,
) -> Iterator[tuple[Tensor, Tensor]]:
    """One pass over a client's clips, in batches `(lq_BTCHW, gt_BTCHW)` of float32.

    Every frame of every clip names one sample, which starts there; where too few frames follow, the
    start is drawn anew (the recipe of VRT and RVRT). The last batch may be smaller.

    Args:
        clips: the client's clips, each of at least `num_frames` frames and `crop` pixels.
        rng: draws the order, starts, crops and flips; nothing else does.
        batch_size: samples a batch.
        num_frames: T, before mirroring.
        crop: height and width of the ground-truth crop, a multiple of the clips' scale.
        augment: flip and transpose at random.
        mirror: follow the frames by themselves in reverse, so that T is twice `num_frames`.
    """
    samples = [(clip, start) for clip in clips for start in range(clip.num_frames)]
    order = rng.permutation(len(samples))
    for first in range(0, len(order), batch_size):
        pairs = [
            _sample(clip, start, rng, num_frames, crop, augment)
            for clip, start in (samples[i] for i in order[first : first + batch_size])
        ]
        lq, gt = (np.stack(frames) for frames in zip(*pairs, strict=True))
        if mirror:
            lq, gt = (np.concatenate((frames, frames[:, ::-1]), axis=1) for frames in (lq, gt))
        yield _to_tensor(lq), _to_tensor(gt)


def _sample(
    clip: Clip, start: int, rng: np.random.Generator, num_frames: int, crop: int, augment: bool
) -> tuple[Frames, Frames]:
    latest = clip.num_frames - num_frames
    if start > latest:
        start = int(rng.integers(latest + 1))
    size, scale = crop // clip.scale, clip.scale
    top = int(rng.integers(clip.height // scale - size + 1))
    left = int(rng.integers(clip.width // scale - size + 1))
    frames = slice(start, start + num_frames)
    lq = clip.lq()[frames, top : top + size, left : left + size]
    top, left = top * scale, left * scale
    gt = clip.gt()[frames, top : top + crop, left : left + crop]
    if augment:
        # One decision for all frames of both.
        flip_x, flip_y, transpose = rng.random(3) < 0.5
        lq, gt = (_augmented(frames, flip_x, flip_y, transpose) for frames in (lq, gt))
    return lq, gt


def _augmented(frames_THWC: Frames, flip_x: bool, flip_y: bool, transpose: bool) -> Frames:
    if flip_x:
        frames_THWC = frames_THWC[:, :, ::-1]
    if flip_y:
        frames_THWC = frames_THWC[:, ::-1]
    return frames_THWC.swapaxes(1, 2) if transpose else frames_THWC


def _to_tensor(frames_BTHWC: Frames) -> Tensor:
    channels_first = np.ascontiguousarray(np.moveaxis(frames_BTHWC, -1, 2))
    return torch.from_numpy(channels_first).float().div_(255)
