from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fedvsr.data import tracks
from fedvsr.data.colour import Colour
from fedvsr.data.encode import VideoCodec, write_pictures, write_video
from fedvsr.data.frames import Source, open_clip
from fedvsr.errors import UserError
from tests.unit.data.clips import SOFT, sound_packets, timestamps, write_clip


def copy(source: Source, out: Path, codec: VideoCodec = VideoCodec(crf=2)) -> Source:  # noqa: B008
    with write_video(out, source, codec, sound=True) as writer:
        for rgb, time in source.frames():
            writer.write(rgb, time)
    assert not list(out.parent.glob(".*.tmp"))
    return open_clip(out)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov"])
def test_sound_is_copied_packet_for_packet(tmp_path: Path, suffix: str) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT, sound="aac"))
    out = tmp_path / f"out.{suffix}"
    copy(source, out)
    expected, copied = sound_packets(source.path), sound_packets(out)
    assert len(expected) > 40
    assert [data for data, _ in copied] == [data for data, _ in expected]
    # Matroska has no times below zero, so all are later by the encoder's delay.
    delay = timestamps(out)[0]
    gaps = [abs(a + delay - b) for (_, a), (_, b) in zip(expected, copied, strict=True)]
    # It counts in milliseconds.
    assert max(gaps) <= (Fraction(1, 1000) if suffix == "mkv" else 0)
    assert delay == (Fraction(23, 1000) if suffix == "mkv" else 0)


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_variable_times_are_kept(tmp_path: Path, suffix: str) -> None:
    times = [0, 1001, 2002, 5005, 6006, 6500, 7000, 12012, 13013, 14014, 20020, 21021]
    path = write_clip(tmp_path / "v.mp4", SOFT, times=times, time_base=Fraction(1, 30000))
    copy(open_clip(path), tmp_path / f"out.{suffix}")
    assert timestamps(path) == [Fraction(time, 30000) for time in times]
    assert timestamps(tmp_path / f"out.{suffix}") == timestamps(path)


@pytest.mark.parametrize("rate", [Fraction(25), Fraction(30000, 1001)])
def test_the_rate_is_exact(tmp_path: Path, rate: Fraction) -> None:
    path = write_clip(tmp_path / "v.mp4", SOFT, time_base=1 / rate)
    source = open_clip(path)
    assert source.rate == rate
    out = copy(source, tmp_path / "out.mp4")
    assert out.rate == rate
    assert timestamps(out.path) == timestamps(path)


@pytest.mark.parametrize(
    "colour",
    [Colour(1, False, 1, 1), Colour(6, False, 6, 6), Colour(5, True), Colour(9, False, 9, 14)],
)
def test_colours_and_tags_are_kept(tmp_path: Path, colour: Colour) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT, colour=colour, aspect=Fraction(8, 9)))
    out = copy(source, tmp_path / "out.mp4")
    assert out.colour == colour
    assert out.aspect == Fraction(8, 9)
    means = [np.stack([rgb for rgb, _ in c.frames()]).mean((0, 1, 2)) for c in (source, out)]
    assert np.abs(means[1] - means[0]).max() < 0.3


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mkv", SOFT[:, :31, :45]))
    out = copy(source, tmp_path / "out.mp4")
    assert (out.height, out.width) == (31, 45)
    assert len(list(out.frames())) == 12


def test_sound_that_does_not_fit_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mkv", SOFT, sound="tta"))
    assert tracks.fits(source.path, "matroska", sound=True)
    assert not tracks.fits(source.path, "mp4", sound=True)
    assert tracks.fits(source.path, "mp4", sound=False)
    with pytest.raises(UserError, match=r"\.mp4 cannot hold sound of the codec tta; write"):
        copy(source, tmp_path / "out.mp4")
    assert [path.name for path in tmp_path.iterdir()] == ["v.mkv"]
    copy(source, tmp_path / "out.mkv")
    assert len(sound_packets(tmp_path / "out.mkv")) == len(sound_packets(source.path)) > 0


def test_codecs(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT))
    copy(source, tmp_path / "lossless.mkv", VideoCodec("ffv1"))
    with av.open(str(tmp_path / "lossless.mkv")) as container:
        assert container.streams.video[0].codec_context.name == "ffv1"
    for name, reason in [("libx999", "is no encoder"), ("aac", "is not a video encoder")]:
        with pytest.raises(UserError, match=rf"--codec {name} {reason}.*; try libx264"):
            copy(source, tmp_path / "out.mp4", VideoCodec(name))
    small, large = (tmp_path / f"{crf}.mp4" for crf in (40, 4))
    for path in (small, large):
        copy(source, path, VideoCodec(crf=int(path.stem)))
    assert small.stat().st_size < large.stat().st_size / 2


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    source = open_clip(write_clip(tmp_path / "v.mp4", SOFT, sound="aac"))
    out = tmp_path / "out.mp4"
    out.write_bytes(b"old")

    def write_and(error: type[BaseException]) -> None:
        with write_video(out, source, VideoCodec(), sound=True) as writer:
            for rgb, time in source.frames():
                writer.write(rgb, time)
            raise error

    for error in (KeyboardInterrupt, ZeroDivisionError):
        with pytest.raises(error):
            write_and(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.mp4", "v.mp4"]
    assert out.read_bytes() == b"old"
    with pytest.raises(KeyboardInterrupt), write_pictures(tmp_path / "p", iter("abc")):
        raise KeyboardInterrupt
    assert not (tmp_path / "p").exists()


def test_pictures_replace_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    for frames in (SOFT[:3], SOFT[3:5]):
        with write_pictures(folder, (f"{i}.png" for i in range(9))) as writer:
            for time, rgb in enumerate(frames):
                writer.write(rgb, time)
    assert sorted(path.name for path in folder.iterdir()) == ["0.png", "1.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(folder / "1.png")), SOFT[4])
    assert [path.name for path in tmp_path.iterdir()] == ["p"]
