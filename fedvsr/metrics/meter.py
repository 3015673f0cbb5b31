"""Compares a clip with ground truth, frame by frame, by the metrics that are chosen."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import TracebackType
from typing import Protocol

from fedvsr.errors import UserError
from fedvsr.metrics import OPTIONAL, Metric
from fedvsr.metrics.fidelity import Frames, fidelity
from fedvsr.metrics.perceptual import dists, dists_network, lpips, lpips_network
from fedvsr.metrics.temporal import FlowError
from fedvsr.metrics.vmaf import Vmaf


class Measure(Protocol):
    """A metric of one clip, to which frames are given in order."""

    def add(self, sr: Frames, gt: Frames) -> None:
        """Compare the next frame (H, W, 3), uint8 RGB, with ground truth."""

    def mean(self) -> float | None:
        """The clip's value; None if it has too few frames for one."""

    def close(self) -> None:
        """Release what it holds, also if the clip is not finished."""


class Meter:
    """Scores a clip by PSNR and SSIM of both channels, and by the metrics that are chosen.

    Memory does not grow with the clip's length. It is a context manager, which ends what it
    started.

    Args:
        metrics: names of `fedvsr.metrics.OPTIONAL`.
        weights: the folder with the weights of lpips and dists; None for torchvision's place.

    Raises:
        UserError: a package or a file of weights is missing.
    """

    def __init__(self, metrics: Sequence[str] = (), weights: str | None = None) -> None:
        self._measures = {OPTIONAL[name]: _start(name, weights) for name in metrics}
        self._sums, self.num_frames = dict[str, float](), 0

    def add(self, sr: Frames, gt: Frames) -> None:
        """Compare the next frame (H, W, 3), uint8 RGB, with ground truth.

        Raises:
            ValueError: the frames differ in shape, or are no uint8 RGB frames of 11 pixels a side.
            UserError: they are too small for a metric that is chosen, or that metric failed.
        """
        for name, value in fidelity(sr, gt).items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        for metric, measure in self._measures.items():
            _require_size(metric, *gt.shape[:2])
            measure.add(sr, gt)
        self.num_frames += 1

    def means(self) -> dict[str, float]:
        """The clip's scores by column: means over its frames.

        Raises:
            UserError: a metric failed.
        """
        means = {name: total / self.num_frames for name, total in self._sums.items()}
        others = {metric.column: measure.mean() for metric, measure in self._measures.items()}
        return means | {name: value for name, value in others.items() if value is not None}

    def __enter__(self) -> Meter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        for measure in self._measures.values():
            measure.close()


class _MeanOfFrames:
    """A metric of single frames."""

    def __init__(self, compare: Callable[[Frames, Frames], float]) -> None:
        self._compare = compare
        self._sum, self._num_frames = 0.0, 0

    def add(self, sr: Frames, gt: Frames) -> None:
        self._sum += self._compare(sr, gt)
        self._num_frames += 1

    def mean(self) -> float | None:
        return self._sum / self._num_frames if self._num_frames else None

    def close(self) -> None:
        pass


def _start(name: str, weights: str | None) -> Measure:
    # Networks are loaded here, so that a missing file is noticed before the first frame.
    if name == "lpips":
        lpips_network(weights)
        return _MeanOfFrames(partial(lpips, weights=weights))
    if name == "dists":
        dists_network(weights)
        return _MeanOfFrames(partial(dists, weights=weights))
    return Vmaf() if name == "vmaf" else FlowError()


def _require_size(metric: Metric, height: int, width: int) -> None:
    if min(height, width) < metric.min_side:
        raise UserError(
            f"evaluation.metrics: {metric.name} needs frames of {metric.min_side} pixels a side, "
            f"and these have {width} x {height}; leave it out"
        )
