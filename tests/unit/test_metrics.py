from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr import metrics

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "image_metrics.npz")


@pytest.mark.parametrize("case", ["0", "1", "2"])
@pytest.mark.parametrize(("luma", "suffix"), [(False, "rgb"), (True, "y")])
def test_golden(case: str, luma: bool, suffix: str) -> None:
    sr, gt = GOLDEN[f"{case}/sr"], GOLDEN[f"{case}/gt"]
    assert metrics.psnr(sr, gt, luma) == pytest.approx(GOLDEN[f"{case}/psnr_{suffix}"], abs=1e-6)
    assert metrics.ssim(sr, gt, luma) == pytest.approx(GOLDEN[f"{case}/ssim_{suffix}"], abs=1e-6)


def test_psnr_by_hand() -> None:
    # Off by 5 everywhere: MSE 25, 10 log10(65025 / 25) = 34.1514 dB.
    gt = np.full((8, 8, 3), 100, np.uint8)
    assert metrics.psnr(gt + 5, gt) == pytest.approx(34.15140, abs=1e-5)
    # Luma moves by 5 * 219 / 255 = 4.29412 only: 20 log10(255 / 4.29412).
    assert metrics.psnr(gt + 5, gt, luma=True) == pytest.approx(35.47332, abs=1e-4)
    assert metrics.psnr(gt, gt) == np.inf
    # Differences beyond 127 must not wrap in 8 or 16 bits.
    dark, bright = np.zeros((8, 8, 3), np.uint8), np.full((8, 8, 3), 255, np.uint8)
    assert metrics.psnr(dark, bright) == pytest.approx(0)


def test_frames_are_scored_one_by_one() -> None:
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 256, (2, 3, 45, 83, 3), dtype=np.uint8)
    sr = rng.integers(0, 256, gt.shape, dtype=np.uint8)
    for score in (metrics.psnr, metrics.ssim):
        values = score(sr, gt)
        assert values.shape == (2, 3)
        assert values[1, 2] == pytest.approx(float(score(sr[1, 2], gt[1, 2])), abs=1e-12)


def test_refusals() -> None:
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="different shapes"):
        metrics.psnr(frame, frame[:8])
    with pytest.raises(ValueError, match="uint8"):
        metrics.ssim(frame.astype(float), frame.astype(float))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(frame[:10], frame[:10])
