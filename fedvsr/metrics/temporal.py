"""tOF, the error of motion from frame to frame. Frames are uint8 RGB arrays (H, W, 3)."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from fedvsr.metrics.fidelity import Frames, require_frames
from fedvsr.metrics.perceptual import missing

# Farneback's settings in the measure's original code (Chu et al. 2020, TecoGAN).
_FARNEBACK = {
    "pyr_scale": 0.5,
    "levels": 3,
    "winsize": 15,
    "iterations": 3,
    "poly_n": 5,
    "poly_sigma": 1.2,
    "flags": 0,
}


class FlowError:
    """tOF of a clip (Chu et al. 2020), frame by frame.

    The optical flow from one frame to the next, of the super-resolved frames and of ground truth;
    the distance in pixels between the two, mean over the pixels and then over the pairs of frames.
    Flow is Farneback's (2003) by OpenCV, of 8-bit grey.
    """

    def __init__(self) -> None:
        try:
            import cv2
        except ImportError:
            raise missing("tof") from None
        self._cv2: Any = cv2
        self._before: tuple[Any, Any] | None = None
        self._sum, self._num_pairs = 0.0, 0

    def add(self, sr: Frames, gt: Frames) -> None:
        """Compare the motion to the next frame."""
        require_frames(sr, gt)
        now = self._grey(sr), self._grey(gt)
        if self._before is not None:
            of_sr, of_gt = map(self._flow, self._before, now)
            self._sum += float(np.linalg.norm(of_sr - of_gt, axis=-1).mean())
            self._num_pairs += 1
        self._before = now

    def mean(self) -> float | None:
        """The mean in pixels, 0 for equal clips; None for fewer than two frames."""
        return self._sum / self._num_pairs if self._num_pairs else None

    def close(self) -> None:
        """Release nothing."""

    def _grey(self, frame: Frames) -> Any:
        return self._cv2.cvtColor(np.ascontiguousarray(frame), self._cv2.COLOR_RGB2GRAY)

    def _flow(self, before: Any, now: Any) -> npt.NDArray[np.float64]:
        flow = self._cv2.calcOpticalFlowFarneback(before, now, None, **_FARNEBACK)
        return np.asarray(flow, np.float64)
