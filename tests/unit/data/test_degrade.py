from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.degrade import (
    Kind,
    bicubic_downscale,
    bicubic_upscale,
    degrade,
    gaussian_downscale,
    quantise,
)
from fedvsr.errors import UserError

GOLDEN = np.load(Path(__file__).parents[2] / "golden" / "image_metrics.npz")


@pytest.mark.parametrize("case", ["0", "1", "2"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_golden(case: str, dtype: type) -> None:
    gt = GOLDEN[f"{case}/gt"].astype(dtype) / 255
    small = bicubic_downscale(gt)
    assert small.dtype == dtype
    np.testing.assert_allclose(small, GOLDEN[f"{case}/lr_bicubic_x4_float"], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(quantise(small), GOLDEN[f"{case}/lr_bicubic_x4_uint8"])
    large = bicubic_upscale(GOLDEN[f"{case}/lr_bicubic_x4_float"].astype(dtype))
    np.testing.assert_allclose(large, GOLDEN[f"{case}/up_bicubic_x4_float"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_a_ramp_stays_a_ramp(scale: int) -> None:
    # A cubic reproduces a line exactly: away from the mirrored edges, shrinking a ramp samples it
    # at the centres of the new pixels, and enlarging it again gives it back.
    ramp = np.broadcast_to(np.arange(24.0 * scale)[:, None, None], (24 * scale, 16 * scale, 3))
    small = bicubic_downscale(ramp, scale)
    centres = (np.arange(24) + 0.5) * scale - 0.5
    np.testing.assert_allclose(small[4:-4, 8, 0], centres[4:-4], atol=1e-9)
    large = bicubic_upscale(small, scale)
    inside = slice(8 * scale, -8 * scale)
    np.testing.assert_allclose(large[inside, 20, 0], ramp[inside, 20, 0], atol=1e-9)


def test_leading_axes_and_cropping() -> None:
    frames = np.random.default_rng(0).random((2, 3, 17, 22, 3))
    small = bicubic_downscale(frames)
    assert small.shape == (2, 3, 4, 5, 3)
    np.testing.assert_allclose(small[1, 2], bicubic_downscale(frames[1, 2, :16, :20]), atol=1e-12)
    with pytest.raises(UserError, match="too small for x4"):
        bicubic_downscale(frames[..., :3, :, :])


def resized_by_definition(line: np.ndarray, scale: int) -> np.ndarray:
    """Compute MATLAB's `imresize(line, 1 / scale)` of one line, weight by weight."""

    def cubic(x: float) -> float:
        x = abs(x)
        if x <= 1:
            return 1.5 * x**3 - 2.5 * x**2 + 1
        return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x <= 2 else 0.0

    n, small = len(line), []
    for centre in (np.arange(n // scale) + 0.5) * scale - 0.5:
        taps = range(int(np.ceil(centre - 2 * scale)), int(np.floor(centre + 2 * scale)) + 1)
        weights = np.array([cubic((tap - centre) / scale) for tap in taps])
        mirrored = [tap % (2 * n) for tap in taps]
        values = [line[tap if tap < n else 2 * n - 1 - tap] for tap in mirrored]
        small.append(values @ weights / weights.sum())
    return np.array(small)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_bicubic_by_definition(scale: int) -> None:
    frame = np.random.default_rng(scale).random((3 * scale, 5 * scale, 3))
    rows = np.apply_along_axis(resized_by_definition, 0, frame, scale)
    want = np.apply_along_axis(resized_by_definition, 1, rows, scale)
    np.testing.assert_allclose(bicubic_downscale(frame, scale), want, rtol=0, atol=1e-9)


@pytest.mark.parametrize(("scale", "taps"), [(2, 12), (3, 7), (4, 12), (8, 12)])
def test_blur_and_subsampling_by_definition(scale: int, taps: int) -> None:
    frame = np.random.default_rng(scale).random((6 * scale, 5 * scale, 3))
    offset = np.arange(taps) - (taps - 1) / 2
    kernel = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.6**2))
    kernel /= kernel.sum()
    # A low-resolution pixel lies in the middle of its block of scale x scale pixels.
    far = taps + scale
    padded = np.pad(frame, ((far, far), (far, far), (0, 0)), mode="edge")
    want = np.empty((6, 5, 3))
    for y, x in np.ndindex(6, 5):
        top, left = (far + int(i * scale + (scale - 1) / 2 + offset[0]) for i in (y, x))
        window = padded[top : top + taps, left : left + taps]
        want[y, x] = np.tensordot(kernel, window, 2)
    np.testing.assert_allclose(gaussian_downscale(frame, scale), want, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_both_kinds_show_the_same_place(scale: int) -> None:
    # Sampling the corner of a block instead of its middle would shift by (scale - 1) / 2 pixels.
    ramp = np.broadcast_to(np.arange(24.0 * scale)[:, None, None], (24 * scale, 16 * scale, 3))
    bi, bd = bicubic_downscale(ramp, scale), gaussian_downscale(ramp, scale)
    np.testing.assert_allclose(bd[6:-6], bi[6:-6], atol=1e-9)


@pytest.mark.parametrize("case", ["0", "1", "2"])
def test_degrade_gives_the_stored_frames(case: str) -> None:
    gt = GOLDEN[f"{case}/gt"]
    low = degrade(np.stack([gt, gt[::-1]]), "bi", 4)
    assert low.dtype == np.uint8
    np.testing.assert_array_equal(low[0], GOLDEN[f"{case}/lr_bicubic_x4_uint8"])
    assert not np.array_equal(low[0], low[1])
    blurred = degrade(gt[None], "bd", 4)
    np.testing.assert_array_equal(
        blurred[0], quantise(gaussian_downscale(gt.astype(np.float32) / 255))
    )


@pytest.mark.parametrize(
    ("kind", "scale", "message"), [("bd", 5, "not x5"), ("bi", 8, "too small for x8")]
)
def test_degrade_refuses_what_it_cannot_reduce(kind: Kind, scale: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        degrade(np.zeros((2, 7, 7, 3), np.uint8), kind, scale)
