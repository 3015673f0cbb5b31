from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from fedvsr.data.clips import Frames
from fedvsr.data.colour import Colour
from fedvsr.data.frames import open_clip
from fedvsr.errors import UserError
from tests.conftest import moving_texture
from tests.unit.data.clips import SOFT, by_hand, frame_of


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
def test_a_round_trip_keeps_the_colours(
    matrix: int, full_range: bool, size: tuple[int, int]
) -> None:
    colour, rgb = Colour(matrix, full_range), SOFT[0, : size[0], : size[1]]
    back = colour.to_rgb(colour.from_rgb(rgb)).astype(int)
    assert back.shape == rgb.shape
    assert np.abs((back - rgb).mean((0, 1))).max() < 0.3
    # Chroma is halved if both sides are even; a grey picture is not affected.
    grey = rgb.mean(-1, keepdims=True).repeat(3, -1).round().astype(np.uint8)
    assert np.abs(colour.to_rgb(colour.from_rgb(grey)).astype(int) - grey).max() <= 1


def test_a_picture_is_not_shifted() -> None:
    # Red rises from left to right, so chroma that is off by half a pixel would change its mean.
    ramp: Frames = np.zeros((16, 64, 3), np.uint8)
    ramp[..., 0] = np.linspace(0, 252, 64).astype(np.uint8)
    ramp[..., 1:] = 80
    back = Colour().to_rgb(Colour().from_rgb(ramp)).astype(int)
    assert np.abs((back - ramp)[:, 2:-2].mean((0, 1))).max() < 0.5


@pytest.mark.parametrize(
    "pixels", ["yuv422p", "yuv444p", "nv12", "yuv420p10le", "yuv422p10le", "rgb24", "gbrp"]
)
def test_other_pixel_formats_are_converted(pixels: str) -> None:
    grey = SOFT[0].mean(-1, keepdims=True).repeat(3, -1).round().astype(np.uint8)
    frame = av.VideoFrame.from_ndarray(grey, format="rgb24").reformat(
        format=pixels, src_color_range=2, dst_color_range=1 if "rgb" not in pixels else 2
    )
    back = Colour(6).to_rgb(frame).astype(int)
    assert np.abs(back - grey).max() <= 4, pixels
    assert np.abs((back - grey).mean()) < 2


@pytest.mark.parametrize("full_range", [False, True])
def test_a_grey_frame_is_converted(full_range: bool) -> None:
    luma = SOFT[0].mean(-1)
    coded = luma if full_range else 16 + luma * 219 / 255
    frame = av.VideoFrame.from_ndarray(coded.round().astype(np.uint8), format="gray")
    back = Colour(6, full_range).to_rgb(frame)
    assert np.abs(back.astype(float) - luma[..., None]).max() <= 1.1


# Codes of luma, Cb and Cr, in range and near its ends.
PATCHES = [
    (16, 128, 128), (235, 128, 128), (126, 128, 128), (81, 90, 240), (145, 54, 34),
    (41, 240, 110), (100, 150, 90), (180, 100, 140), (60, 128, 160), (210, 120, 120),
]  # fmt: skip


@pytest.mark.parametrize("matrix", [6, 1, 9])
@pytest.mark.parametrize("full_range", [False, True])
def test_flat_patches_have_the_colours_of_the_standards(matrix: int, full_range: bool) -> None:
    for codes in PATCHES:
        planes = [np.full((8, 8), codes[0]), *(np.full((4, 4), code) for code in codes[1:])]
        rgb = Colour(matrix, full_range).to_rgb(frame_of(planes))
        expected = by_hand(*map(np.float64, codes), matrix=matrix, full_range=full_range)
        assert np.abs(rgb - expected).max() <= 0.51, codes


def scaled(frame: av.VideoFrame, matrix: int, full_range: bool) -> Frames:
    """Convert a frame to RGB by ffmpeg's scaler with its precise settings."""
    name = {6: "bt601", 1: "bt709", 9: "bt2020"}[matrix]
    options = [
        f"in_color_matrix={name}",
        f"in_range={'pc' if full_range else 'tv'}",
        "out_range=pc",
        "flags=bilinear+accurate_rnd+full_chroma_int+full_chroma_inp+bitexact",
    ]
    if frame.format.name == "yuv420p":
        # Chroma lies on the even columns and half-way between the rows.
        options += ["in_h_chr_pos=0", "in_v_chr_pos=128"]
    graph = av.filter.Graph()
    size = f"video_size={frame.width}x{frame.height}"
    nodes = [
        graph.add("buffer", f"{size}:pix_fmt={frame.format.name}:time_base=1/25:pixel_aspect=1/1"),
        graph.add("scale", ":".join(options)),
        graph.add("format", "pix_fmts=gbrp"),
        graph.add("buffersink"),
    ]
    for node, following in pairwise(nodes):
        node.link_to(following)
    graph.configure()
    frame.pts = 0
    graph.push(frame)
    out = graph.pull()
    assert isinstance(out, av.VideoFrame)
    return out.to_ndarray().astype(np.uint8)


@pytest.mark.parametrize("matrix", [6, 1, 9])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("halved", [False, True])
def test_a_texture_has_the_colours_of_ffmpegs_scaler(
    matrix: int, full_range: bool, halved: bool
) -> None:
    texture = moving_texture(1, 64, 96)[0].astype(float)
    low, high = (0, 255) if full_range else (16, 235)
    planes = [
        low + texture[..., 0] / 255 * (high - low),
        *(128 + (texture[..., i] - 128) * 0.6 for i in (1, 2)),
    ]
    if halved:
        planes[1:] = [plane[::2, ::2] for plane in planes[1:]]
    frame = frame_of([plane.astype(np.uint8) for plane in planes])
    difference = Colour(matrix, full_range).to_rgb(frame).astype(int) - scaled(
        frame, matrix, full_range
    )
    assert np.abs(difference).max() <= 1
    assert np.abs(difference).mean() < 0.02


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("matrix", [6, 1, 9])
def test_deep_patches_have_the_colours_of_the_standards(
    bits: int, full_range: bool, matrix: int
) -> None:
    colour = Colour(matrix, full_range)
    rng = np.random.default_rng(0)
    for codes in rng.integers((70, 420, 420), (900, 600, 600), (8, 3)) << (bits - 10):
        frame = av.VideoFrame(8, 8, f"yuv420p{bits}le")
        for plane, code in zip(frame.planes, codes, strict=True):
            plane.update(np.full(plane.buffer_size // 2, code, "<u2").tobytes())
        rgb = colour.to_rgb(frame, deep=True)
        assert rgb.dtype == np.uint16
        # By the standards, a limited code is four times as large with two bits more, and the
        # largest full code is the largest number.
        units = 1 << (bits - 8)
        if full_range:
            luma, *chroma = codes * 255 / ((1 << bits) - 1)
            middle = (128 * units) * 255 / ((1 << bits) - 1) - 128
            luma, cb, cr = luma, *(code - middle for code in chroma)
        else:
            luma, cb, cr = codes / units
        expected = by_hand(luma, cb, cr, matrix=matrix, full_range=full_range)
        assert np.abs(rgb / 257 - expected).max() < 0.01
        # The same with 8 bits is the same, rounded.
        assert np.abs(colour.to_rgb(frame).astype(float) - expected).max() <= 0.51


@pytest.mark.parametrize("bits", [10, 12])
@pytest.mark.parametrize("full_range", [False, True])
def test_a_deep_round_trip_is_finer_than_8_bits(bits: int, full_range: bool) -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64, 1).repeat(3, -1).astype(np.uint16)
    colour = Colour(1, full_range)
    frame = colour.from_rgb(grey, bits)
    assert frame.format.name == f"yuv420p{bits}le"
    error = np.abs(colour.to_rgb(frame, deep=True).astype(int) - grey).max()
    assert error <= 65535 / (1 << bits) * (1 if full_range else 255 / 219) / 2 + 1


@pytest.mark.parametrize("pixels", ["rgb48be", "gbrp16le", "gbrp12le", "gbrp10le"])
def test_deep_rgb_is_read(pixels: str) -> None:
    grey = np.linspace(0, 65535, 64 * 48).reshape(48, 64, 1).repeat(3, -1).astype(np.uint16)
    frame = av.VideoFrame.from_ndarray(grey, format="rgb48le").reformat(format=pixels)
    bits = 16 if "16" in pixels or "48" in pixels else int(pixels[4:6])
    back = Colour().to_rgb(frame, deep=True).astype(int)
    assert np.abs(back - grey).max() <= 65536 >> bits
    assert back.max() == 65535


@pytest.mark.parametrize("pixels", ["p010le", "yuv420p10be", "p012le"])
def test_deep_layouts_are_read_alike(pixels: str) -> None:
    rgb = SOFT[0].astype(np.uint16) * 257
    frame, colour = Colour(1).from_rgb(rgb, 10), Colour(1)
    back = colour.to_rgb(frame.reformat(format=pixels), deep=True)
    np.testing.assert_array_equal(back, colour.to_rgb(frame, deep=True))


@pytest.mark.parametrize(
    ("matrix", "name"), [(8, "YCgCo"), (10, "constant luminance"), (14, "ICtCp")]
)
def test_colours_coded_in_another_way_are_refused(tmp_path: Path, matrix: int, name: str) -> None:
    path = tmp_path / "w.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        stream.codec_context.colorspace = matrix
        out.mux([*stream.encode(Colour().from_rgb(SOFT[0])), *stream.encode()])
    with pytest.raises(
        UserError, match=rf"w\.mp4 codes colour by matrix {matrix} \(.*{name}.*\) of .*; convert it"
    ):
        open_clip(path)
