"""tOF, with motion that is known."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from fedvsr.data.degrade import bicubic_upscale
from fedvsr.errors import UserError
from fedvsr.metrics.meter import Meter
from fedvsr.metrics.temporal import FlowError

pytest.importorskip("cv2", reason="needs opencv-python-headless (extra metrics)")


def moving(num_frames: int, columns: int, seed: int = 0) -> np.ndarray:
    """A texture (T, 96, 128, 3) that moves to the left by some columns a frame."""
    rng = np.random.default_rng(seed)
    still = bicubic_upscale(rng.random((24, 64, 3)), 4).clip(0, 1) * 255
    cuts = [still[:, t * columns : t * columns + 128] for t in range(num_frames)]
    return np.stack(cuts).astype(np.uint8)


def tof(sr: np.ndarray, gt: np.ndarray) -> float | None:
    measure = FlowError()
    for pair in zip(sr, gt, strict=True):
        measure.add(*pair)
    return measure.mean()


def test_is_the_distance_of_the_motions() -> None:
    # 3 and 1 pixels a frame: the motions differ by 2. Frames that stand still have none.
    fast, slow = moving(4, 3), moving(4, 1)
    still = np.repeat(fast[:1], 4, 0)
    assert tof(slow, fast) == pytest.approx(2, rel=0.05)
    assert tof(still, fast) == pytest.approx(3, rel=0.05)
    assert tof(still, slow) == pytest.approx(1, rel=0.05)


def test_equal_clips_and_single_frames() -> None:
    clip = moving(3, 2)
    assert tof(clip, clip) == 0
    assert tof(clip[:1], clip[:1]) is None
    with Meter(["tof"]) as meter:
        meter.add(clip[0], clip[0])
        assert "tof_px" not in meter.means()


def test_frames_that_do_not_fit() -> None:
    clip = moving(1, 2)[0]
    with pytest.raises(ValueError, match="different shapes"):
        FlowError().add(clip, clip[:40])
    with (
        Meter(["tof"]) as meter,
        pytest.raises(UserError, match=r"tof needs frames of 32 pixels a side, and .* 128 x 31"),
    ):
        meter.add(clip[:31], clip[:31])


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"tof needs .*cv2: pip install 'fedvsr\[metrics\]'"):
        Meter(["tof"])
