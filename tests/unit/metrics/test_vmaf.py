"""VMAF, against another implementation."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.degrade import bicubic_downscale, quantise
from fedvsr.errors import UserError
from fedvsr.inference.evaluate import bicubic
from fedvsr.metrics.meter import Meter
from fedvsr.metrics.vmaf import Vmaf
from tests.conftest import moving_texture

pytest.importorskip("imageio_ffmpeg", reason="needs imageio-ffmpeg (extra metrics)")


def vmaf(sr: np.ndarray, gt: np.ndarray) -> float:
    measure = Vmaf()
    for pair in zip(sr, gt, strict=True):
        measure.add(*pair)
    value = measure.mean()
    assert value is not None
    return value


# The values were computed by vmaf-torch 1.1.0, which shares no code with libvmaf:
#     VMAF(clip_score=True).double()(y(gt), y(sr)).mean()
# with y(f) = torch.from_numpy(np.rint(16 + f @ [65.481, 128.553, 24.966] / 255))[:, None].
# On natural clips the two differ by at most 0.02: docs/explanation/metrics.md.
def test_equals_another_implementation() -> None:
    gt = moving_texture(6, 128, 160, seed=1)
    lq = np.stack([quantise(bicubic_downscale(f.astype(np.float32) / 255, 4)) for f in gt])
    assert vmaf(bicubic(lq, 4), gt) == pytest.approx(78.2552, abs=0.05)
    # An odd size, and noise.
    gt = moving_texture(5, 131, 145, seed=1)
    noise = np.random.default_rng(0).normal(0, 40, gt.shape)
    sr = np.clip(gt.astype(int) + noise, 0, 255).astype(np.uint8)
    assert vmaf(sr, gt) == pytest.approx(72.8496, abs=0.05)


def test_equal_frames_have_the_upper_value() -> None:
    # 100 from the second frame on: the first has no motion, and the model gives it 97.43.
    gt = moving_texture(6, 128, 160, seed=1)
    assert vmaf(gt, gt) == pytest.approx((97.4294 + 5 * 100) / 6, abs=0.01)


def test_frames_that_do_not_fit() -> None:
    gt = moving_texture(1, 64, 80)[0]
    with pytest.raises(ValueError, match="different shapes"):
        Vmaf().add(gt, gt[:, :70])
    with Meter(["vmaf"]) as meter:
        with pytest.raises(
            UserError, match=r"vmaf needs frames of 64 pixels a side, and .* 80 x 63"
        ):
            meter.add(gt[:63], gt[:63])
        meter.add(gt, gt)
        assert meter.means()["vmaf"] > 90


def test_an_unfinished_clip_leaves_no_process_behind() -> None:
    gt = moving_texture(1, 64, 80)[0]
    with Meter(["vmaf"]) as meter:
        meter.add(gt, gt)
        (measure,) = meter._measures.values()
        assert isinstance(measure, Vmaf)
        process = measure._process
        assert process is not None
        assert process.poll() is None
    assert process.poll() is not None


def test_an_ffmpeg_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "ffmpeg"
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", str(fake))
    gt = moving_texture(1, 720, 1280)[0]
    for message, said in (
        ("No such filter: 'libvmaf'", "has no libvmaf; unset IMAGEIO_FFMPEG_EXE"),
        ("it is broken", "ffmpeg failed: it is broken"),
    ):
        fake.write_text(f'#!/bin/sh\necho "{message}" >&2\nexit 1\n')
        fake.chmod(0o755)
        measure = Vmaf()
        with pytest.raises(UserError, match=said):
            # More than a pipe holds.
            measure.add(gt, gt)
        measure = Vmaf()
        measure.add(gt[:11, :11], gt[:11, :11])
        time.sleep(0.2)
        with pytest.raises(UserError, match=said):
            measure.mean()


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    with pytest.raises(
        UserError, match=r"vmaf needs .*imageio_ffmpeg: pip install 'fedvsr\[metric"
    ):
        Meter(["vmaf"])
