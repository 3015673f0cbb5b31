from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.metrics.fidelity import fidelity, psnr

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "image_metrics.npz")

COLUMNS = {"psnr_db": "psnr_rgb", "ssim": "ssim_rgb", "psnr_y_db": "psnr_y", "ssim_y": "ssim_y"}


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_golden(case: str) -> None:
    sr, gt = GOLDEN[f"{case}/sr"], GOLDEN[f"{case}/gt"]
    values = fidelity(sr, gt)
    for column, golden in COLUMNS.items():
        assert values[column] == pytest.approx(float(GOLDEN[f"{case}/{golden}"]), abs=1e-6), column
    assert psnr(np.stack([sr, gt]), np.stack([gt, gt])) == pytest.approx(
        [values["psnr_db"], np.inf]
    )


def test_psnr_by_hand() -> None:
    # Off by 5 everywhere: MSE 25, 10 log10(65025 / 25) = 34.1514 dB.
    gt = np.full((16, 16, 3), 100, np.uint8)
    assert fidelity(gt + 5, gt)["psnr_db"] == pytest.approx(34.15140, abs=1e-5)
    # Luma moves by 5 * 219 / 255 = 4.29412 only: 20 log10(255 / 4.29412).
    assert fidelity(gt + 5, gt)["psnr_y_db"] == pytest.approx(35.47332, abs=1e-4)
    # Differences beyond 127 must not wrap in 8 or 16 bits.
    dark, bright = np.zeros((16, 16, 3), np.uint8), np.full((16, 16, 3), 255, np.uint8)
    assert fidelity(dark, bright)["psnr_db"] == pytest.approx(0)
    assert psnr(dark, bright) == pytest.approx(0)


def test_equal_frames_have_the_best_values() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (45, 83, 3), dtype=np.uint8)
    values = fidelity(frame, frame)
    assert values["psnr_db"] == values["psnr_y_db"] == psnr(frame, frame) == np.inf
    assert values["ssim"] == pytest.approx(1, abs=1e-12)
    assert values["ssim_y"] == pytest.approx(1, abs=1e-12)


def test_stripes_and_blocks_change_nothing() -> None:
    # Sizes around those of a stripe (32 rows of output) and of a block (64 columns).
    rng = np.random.default_rng(0)
    for height, width in ((11, 11), (42, 74), (43, 75), (85, 139)):
        gt = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
        sr = rng.integers(0, 256, gt.shape, dtype=np.uint8)
        values = fidelity(sr, gt)
        y, y_gt = (16 + frame @ (np.array([65.481, 128.553, 24.966]) / 255) for frame in (sr, gt))
        wanted = 10 * np.log10(255**2 / np.square(y - y_gt).mean())
        assert values["psnr_y_db"] == pytest.approx(wanted, abs=1e-9)
        assert values["ssim_y"] == pytest.approx(_ssim(y, y_gt), abs=1e-9)
        rgb = [_ssim(sr[..., c].astype(float), gt[..., c].astype(float)) for c in range(3)]
        assert values["ssim"] == pytest.approx(np.mean(rgb), abs=1e-9)


def _ssim(x: np.ndarray, y: np.ndarray) -> float:
    """SSIM of two planes by its definition, window by window."""
    taps = np.exp(-np.square(np.arange(11) - 5) / (2 * 1.5**2))
    window = np.outer(taps, taps) / taps.sum() ** 2

    def mean(plane: np.ndarray) -> np.ndarray:
        windows = np.lib.stride_tricks.sliding_window_view(plane, (11, 11))
        return np.einsum("ijkl,kl->ij", windows, window)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    mu_x, mu_y = mean(x), mean(y)
    var_x, var_y, cov = mean(x * x) - mu_x**2, mean(y * y) - mu_y**2, mean(x * y) - mu_x * mu_y
    maps = (2 * mu_x * mu_y + c1) * (2 * cov + c2)
    return float((maps / ((mu_x**2 + mu_y**2 + c1) * (var_x + var_y + c2))).mean())


def test_refuses_frames_that_do_not_fit() -> None:
    frame = np.zeros((16, 16, 3), np.uint8)
    for compare in (psnr, fidelity):
        with pytest.raises(ValueError, match="different shapes"):
            compare(frame, frame[:8])
        with pytest.raises(ValueError, match="uint8"):
            compare(frame.astype(float), frame.astype(float))
    with pytest.raises(ValueError, match="11 x 11"):
        fidelity(frame[:10], frame[:10])
