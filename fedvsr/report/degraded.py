"""The picture of one test clip's frame under each degradation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from fedvsr.data.clips import Clip, Frames
from fedvsr.metrics.fidelity import psnr
from fedvsr.report.figures import box_sums, save

# Side of the part that is shown, in pixels of the ground truth, and panels side by side.
_SIDE, _COLUMNS = 160, 3


def draw_degradations(
    clips: Sequence[Clip], enlarged: Mapping[str, Frames], title: str, path: Path
) -> Path:
    """Draw a part of the middle frame: ground truth, and how each degradation leaves it.

    Low-resolution pixels are drawn as squares. Below each is the PSNR of its bicubic enlargement.

    Args:
        clips: one test clip under each degradation.
        enlarged: the middle frame's bicubic enlargement by degradation.
        title: the title of the picture.
        path: the PNG to write.
    """
    first = clips[0]
    middle = first.num_frames // 2
    gt = np.asarray(first.gt()[middle])
    side = min(_SIDE, *(n - n % first.scale for n in gt.shape[:2]))
    top, left = _liveliest(gt, side, first.scale)
    rows = -(-(1 + len(clips)) // _COLUMNS)
    figure = Figure(figsize=(6.4, 2.45 * rows + 0.3), layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False).ravel()
    panels[0].imshow(gt[top : top + side, left : left + side], interpolation="nearest")
    panels[0].set(title="ground truth")
    for axes, clip in zip(panels[1:], clips, strict=False):
        low = slice(top // clip.scale, (top + side) // clip.scale)
        across = slice(left // clip.scale, (left + side) // clip.scale)
        axes.imshow(np.asarray(clip.lq()[middle, low, across]), interpolation="nearest")
        score = psnr(enlarged[clip.degradation], gt)
        axes.set(title=clip.degradation, xlabel=f"bicubic: {score:.2f} dB")
    for axes in panels:
        axes.set(xticks=[], yticks=[])
    for axes in panels[1 + len(clips) :]:
        axes.set_axis_off()
    figure.suptitle(title)
    return save(figure, path)


def _liveliest(gt: Frames, side: int, scale: int) -> tuple[int, int]:
    """The upper left corner of the square with most detail, on the grid of low resolution."""
    luma = gt.astype(np.float64).mean(-1)
    detail = np.abs(np.diff(luma, axis=0))[:, :-1] + np.abs(np.diff(luma, axis=1))[:-1]
    # A border is added, so that every square of the frame has a sum.
    boxes = box_sums(np.pad(detail, ((0, 1), (0, 1))), side)[::scale, ::scale]
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top) * scale, int(left) * scale
