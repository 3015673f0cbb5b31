from __future__ import annotations

import av
import numpy as np
import pytest

from fedvsr.data.clips import Frames
from fedvsr.data.colour import Colour
from tests.unit.data.clips import SOFT


def coded(colour: Colour, rgb: tuple[int, int, int]) -> list[int]:
    frame = colour.from_rgb(np.full((4, 6, 3), rgb, np.uint8))
    assert frame.format.name == "yuv420p"
    return [bytes(plane)[0] for plane in frame.planes]


def test_codes_are_those_of_the_standards() -> None:
    # BT.601: Y = 16 + 65.481 R, Cb = 128 - 37.797 R, Cr = 128 + 112 R. BT.709: 46.6, -25.7, 112.
    assert coded(Colour(6), (255, 0, 0)) == [81, 90, 240]
    assert coded(Colour(1), (255, 0, 0)) == [63, 102, 240]
    assert coded(Colour(6, full_range=True), (255, 0, 0)) == [76, 85, 255]
    for colour in (Colour(6), Colour(1), Colour(9)):
        assert coded(colour, (255, 255, 255)) == [235, 128, 128]
        assert coded(colour, (0, 0, 0)) == [16, 128, 128]


@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("size", [(32, 48), (31, 48), (31, 47)])
def test_there_and_back(matrix: int, full_range: bool, size: tuple[int, int]) -> None:
    colour, rgb = Colour(matrix, full_range), SOFT[0, : size[0], : size[1]]
    back = colour.to_rgb(colour.from_rgb(rgb)).astype(int)
    assert back.shape == rgb.shape
    assert np.abs((back - rgb).mean((0, 1))).max() < 0.3
    # Chroma is halved where both sides are even; a grey picture shows none of that.
    grey = rgb.mean(-1, keepdims=True).repeat(3, -1).round().astype(np.uint8)
    assert np.abs(colour.to_rgb(colour.from_rgb(grey)).astype(int) - grey).max() <= 1


def test_a_picture_is_not_shifted() -> None:
    # Red rises from left to right: chroma sampled half a pixel aside would add to it.
    ramp: Frames = np.zeros((16, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 252, 64).astype(np.uint8)
    ramp[..., 1:] = 80
    back = Colour().to_rgb(Colour().from_rgb(ramp)).astype(int)
    assert np.abs((back - ramp)[:, 2:-2].mean((0, 1))).max() < 0.5


@pytest.mark.parametrize(
    "pixels", ["yuv422p", "yuv444p", "nv12", "yuv420p10le", "yuv422p10le", "rgb24", "gbrp"]
)
def test_other_formats(pixels: str) -> None:
    grey = SOFT[0].mean(-1, keepdims=True).repeat(3, -1).round().astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(
        format=pixels, src_color_range=2, dst_color_range=1 if "rgb" not in pixels else 2
    )
    back = Colour(6).to_rgb(frame).astype(int)
    assert np.abs(back - grey).max() <= 4, pixels
    assert np.abs((back - grey).mean()) < 2


@pytest.mark.parametrize("full_range", [False, True])
def test_luma_alone(full_range: bool) -> None:
    luma = SOFT[0].mean(-1)
    coded = luma if full_range else 16 + luma * 219 / 255
    frame = av.VideoFrame.from_ndarray(coded.round().astype(np.uint8), format="gray")
    back = Colour(6, full_range).to_rgb(frame)
    assert np.abs(back.astype(float) - luma[..., None]).max() <= 1.1
