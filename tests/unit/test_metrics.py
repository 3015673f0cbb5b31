from __future__ import annotations

import warnings
from pathlib import Path
from urllib.error import URLError

import lpips
import numpy as np
import pytest
import torch

from fedvsr import metrics
from fedvsr.errors import UserError

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


def test_refuses_frames_that_do_not_fit() -> None:
    frame = np.zeros((16, 16, 3), np.uint8)
    with pytest.raises(ValueError, match="different shapes"):
        metrics.psnr(frame, frame[:8])
    with pytest.raises(ValueError, match="uint8"):
        metrics.ssim(frame.astype(float), frame.astype(float))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="11 x 11"):
        metrics.ssim(frame[:10], frame[:10])


def test_lpips_scales_rgb_to_its_range(monkeypatch: pytest.MonkeyPatch) -> None:
    # The published AlexNet weights are a download, so its place is taken by random ones here.
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # How the package calls torchvision is not ours.
        network = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    monkeypatch.setattr(metrics, "_lpips_network", lambda: network)
    rng = np.random.default_rng(0)
    gt = rng.integers(0, 256, (2, 64, 64, 3), dtype=np.uint8)
    sr = rng.integers(0, 256, gt.shape, dtype=np.uint8)
    x, y = (torch.from_numpy(f[1].transpose(2, 0, 1) / 127.5 - 1).float()[None] for f in (sr, gt))
    values = metrics.lpips(sr, gt)
    assert values.shape == (2,)
    assert values[1] == pytest.approx(network(x, y).item(), rel=1e-5)
    assert values[1] > 0
    np.testing.assert_array_equal(metrics.lpips(gt, gt), 0)


def test_lpips_without_its_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    metrics._lpips_network.cache_clear()
    monkeypatch.setattr(
        "torchvision._internally_replaced_utils.load_state_dict_from_url", unreachable
    )
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", unreachable)
    frame = np.zeros((64, 64, 3), np.uint8)
    with pytest.raises(UserError, match=r"weights cannot be downloaded .*no network.*put alexnet"):
        metrics.lpips(frame, frame)
