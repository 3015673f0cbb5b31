from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from fedvsr.data import pictures
from fedvsr.data.encode import write_pictures
from fedvsr.data.frames import open_clip
from fedvsr.errors import UserError
from tests.unit.data.clips import SOFT

RNG = np.random.default_rng(0)
DEEP = RNG.integers(0, 65536, (24, 32, 3), np.uint16)
ALPHA = RNG.integers(0, 65536, (24, 32), np.uint16)
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def test_16_bits_transparency_and_a_profile_survive_a_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    pictures.write(path, DEEP, ALPHA, ICC)
    assert pictures.bits(path) == 16
    np.testing.assert_array_equal(pictures.read(path, deep=True), DEEP)
    np.testing.assert_array_equal(pictures.alpha(path), ALPHA)
    assert pictures.profile(path) == ICC
    with Image.open(path) as picture:
        picture.load()
        assert picture.mode == "RGBA"
    # With 8 bits, they are rounded.
    assert np.abs(pictures.read(path).astype(float) - DEEP / 257).max() <= 0.5


def test_8_bits_with_transparency(tmp_path: Path) -> None:
    path = tmp_path / "p.png"
    alpha = np.zeros((8, 12), np.uint8)
    alpha[:4] = 255
    pictures.write(path, SOFT[0], alpha, ICC)
    assert pictures.bits(path) == 8
    np.testing.assert_array_equal(pictures.read(path), SOFT[0])
    np.testing.assert_array_equal(pictures.read(path, deep=True), SOFT[0].astype(np.uint16) * 257)
    large = pictures.alpha(path)
    assert large is not None
    # Enlarged by 4.
    assert (large.shape, large[:8].min(), large[24:].max()) == ((32, 48), 255, 0)
    assert pictures.profile(path) == ICC


@pytest.mark.parametrize(
    ("mode", "key"), [("L", None), ("LA", None), ("P", "transparency"), ("1", None), ("CMYK", None)]
)
def test_kinds_of_pictures(tmp_path: Path, mode: str, key: str | None) -> None:
    path = tmp_path / ("p.jpg" if mode == "CMYK" else "p.png")
    Image.fromarray(SOFT[0]).convert(mode).save(path, **({key: 3} if key else {}))
    assert pictures.read(path).shape == (32, 48, 3)
    assert (pictures.alpha(path) is not None) == (mode == "LA" or key is not None)
    lines = [*pictures.losses([path], to_pictures=True)]
    assert lines == (["pictures of CMYK are converted to RGB"] if mode == "CMYK" else [])


def test_a_grey_picture_of_16_bits(tmp_path: Path) -> None:
    Image.fromarray(ALPHA).save(tmp_path / "p.png")
    np.testing.assert_array_equal(pictures.read(tmp_path / "p.png", deep=True)[..., 1], ALPHA)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_their_camera_was(tmp_path: Path, orientation: int) -> None:
    small, deep, exif = tmp_path / "s.png", tmp_path / "d.png", Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray((DEEP >> 8).astype(np.uint8)).save(small, exif=exif)
    pictures.write(deep, (DEEP >> 8) * 257)
    data, chunk = deep.read_bytes(), small.read_bytes()
    at = chunk.index(b"eXIf") - 4
    length = int.from_bytes(chunk[at : at + 4], "big") + 12
    deep.write_bytes(data[:33] + chunk[at : at + length] + data[33:])
    np.testing.assert_array_equal(pictures.read(deep), pictures.read(small))
    assert pictures.size(deep) == pictures.size(small) == pictures.read(small).shape[:2]


def test_what_a_video_does_not_keep_is_named(tmp_path: Path) -> None:
    for index, (alpha, icc) in enumerate([(None, None), (ALPHA, None), (None, ICC)]):
        pictures.write(tmp_path / f"{index}.png", DEEP, alpha, icc)
    files = sorted(tmp_path.iterdir())
    assert [*pictures.losses(files, to_pictures=False)] == [
        "transparency is dropped: a video is written without it",
        "colour profiles are dropped: a video is written without them",
    ]
    assert [*pictures.losses(files, to_pictures=True)] == []


def test_a_folder_keeps_what_its_pictures_have(tmp_path: Path) -> None:
    source = tmp_path / "in"
    source.mkdir()
    pictures.write(source / "0.png", DEEP, ALPHA, ICC)
    pictures.write(source / "1.png", SOFT[0, :24, :32])
    clip = open_clip(source)
    assert clip.depth == 16
    with write_pictures(tmp_path / "out", iter(["0.png", "1.png"]), clip) as writer:
        for rgb, time in clip.frames(deep=True):
            writer.write(rgb, time)
    out = tmp_path / "out"
    np.testing.assert_array_equal(pictures.read(out / "0.png", deep=True), DEEP)
    np.testing.assert_array_equal(pictures.alpha(out / "0.png"), ALPHA)
    assert pictures.profile(out / "0.png") == ICC
    assert pictures.alpha(out / "1.png") is None
    assert pictures.bits(out / "1.png") == 16


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("part", [0.3, 0.9])
def test_damaged_pictures(tmp_path: Path, deep: bool, part: float) -> None:
    path = tmp_path / "p.png"
    pictures.write(path, DEEP if deep else DEEP.astype(np.uint8))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[int(len(data) * part)] ^= 0xFF
    for broken in (data[: int(len(data) * part)], bytes(flipped)):
        path.write_bytes(broken)
        with pytest.raises(UserError, match=r"p\.png is not a readable picture: [^\n]+$"):
            pictures.read(path)


def test_a_picture_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    Image.new("1", (300, 200)).save(folder / "0.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 25_000)
    for read in (pictures.read, pictures.size, lambda path: open_clip(path.parent)):
        with pytest.raises(UserError, match=r"0\.png is too large: .* at most 50,000 pixels; cut"):
            read(folder / "0.png")
