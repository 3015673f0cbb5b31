from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.degrade import bicubic_downscale, bicubic_upscale, quantise
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
    with pytest.raises(UserError, match="below x4"):
        bicubic_downscale(frames[..., :3, :, :])
