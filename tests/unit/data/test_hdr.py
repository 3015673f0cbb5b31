from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.colour import Colour
from fedvsr.data.encode import VideoCodec, write_video
from fedvsr.data.frames import Video, open_clip
from fedvsr.data.hdr import Hdr
from fedvsr.errors import UserError
from tests.conftest import moving_texture
from tests.unit.data.clips import SOFT, write_clip

# The display of BT.2020's P3 masters, 1000 to 0.005 cd/m2.
DISPLAY = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
HDR = Hdr((13250, 34500, 7500, 3000, 34000, 16000, 15635, 16450, 10000000, 50), (1000, 400))
PQ = Colour(9, False, 9, 16)


def write_hdr(path: Path) -> Path:
    params = f"log-level=error:master-display={DISPLAY}:max-cll=1000,400"
    encoder = {"x265-params": params}
    wide = moving_texture(6, 48, 64)
    return write_clip(path, wide, colour=PQ, bits=10, codec="libx265", encoder=encoder)


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_hdr10_is_kept(tmp_path: Path, codec: str, suffix: str) -> None:
    source = open_clip(write_hdr(tmp_path / "v.mp4"))
    assert isinstance(source, Video)
    assert (source.hdr, source.depth, source.colour) == (HDR, 10, PQ)
    path = tmp_path / f"out.{suffix}"
    with write_video(path, source, VideoCodec(codec, 2), bits=10) as writer:
        for rgb, time in source.frames(deep=True):
            writer.write(rgb, time)
    out = open_clip(path)
    assert isinstance(out, Video)
    assert (out.hdr, out.depth, out.colour) == (HDR, 10, PQ)
    before, after = (np.stack([f for f, _ in c.frames(deep=True)]) for c in (source, out))
    assert np.abs((after.astype(float) - before).mean((0, 1, 2))).max() < 65535 / 1023


def test_encoders_that_cannot_write_it() -> None:
    assert HDR.options("ffv1") is None
    assert Hdr(None, (1000, 400)).options("libx264") == ["cll=1000,400"]


def test_a_video_without_it(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT))
    assert isinstance(source, Video)
    assert (source.hdr, source.depth, source.lost) == (None, 8, ())


def test_frames_that_are_too_narrow_for_x265(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT))
    with (
        pytest.raises(UserError, match=r"libx265 cannot write frames of 48 pixels"),
        write_video(tmp_path / "out.mp4", source, VideoCodec("libx265")),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["v.mp4"]
