from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from fedvsr.data import tracks
from fedvsr.data.colour import Colour
from fedvsr.data.encode import VideoCodec, write_video
from fedvsr.data.frames import open_clip
from tests.unit.data.clips import SOFT, sound_packets, timestamps, write_clip


def copy(source: Path, out: Path) -> Path:
    clip = open_clip(source)
    with write_video(out, clip, VideoCodec(), sound=True) as writer:
        for rgb, time in clip.frames():
            writer.write(rgb, time)
    return out


def write_tracks(folder: Path) -> Path:
    """A film with sound in two languages, of which the second is the default, and subtitles."""
    sound = write_clip(folder / "sound.mp4", SOFT[:1], sound="aac")
    text = folder / "text.srt"
    text.write_text(
        "1\n00:00:00,000 --> 00:00:00,200\nhello\n\n2\n00:00:00,300 --> 00:00:00,400\nbye\n"
    )
    path = folder / "film.mkv"
    with av.open(str(path), "w") as out, av.open(str(text)) as subtitles:
        sources = [av.open(str(sound)), av.open(str(sound))]
        out.metadata["title"] = "Holidays"
        pictures = out.add_stream("libx264", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 48, 32, "yuv420p"
        copies: list[Any] = [
            out.add_stream_from_template(source.streams.audio[0]) for source in sources
        ]
        copies.append(out.add_stream_from_template(subtitles.streams.subtitles[0]))
        for stream, language, title, disposition in zip(
            copies, ("eng", "deu", "fra"), ("", "Commentary", "Signs"), (0, 1, 64), strict=True
        ):
            stream.metadata.update(language=language, **({"title": title} if title else {}))
            stream.disposition = disposition
        for index, rgb in enumerate(SOFT):
            frame = Colour().from_rgb(rgb)
            frame.pts = index
            out.mux(pictures.encode(frame))
        out.mux(pictures.encode())
        streams = [*(source.streams.audio[0] for source in sources), subtitles.streams.subtitles[0]]
        for stream, stream_copy in zip(streams, copies, strict=True):
            for packet in stream.container.demux(stream):
                if packet.dts is not None:
                    packet.stream = stream_copy
                    out.mux(packet)
        for source in sources:
            source.close()
    return path


def tags(path: Path) -> list[tuple[str, str | None, str | None, int]]:
    with av.open(str(path)) as container:
        return [
            (
                stream.type,
                stream.metadata.get("language"),
                stream.metadata.get("title", stream.metadata.get("name")),
                stream.disposition.value,
            )
            for stream in container.streams
            if stream.type != "video"
        ]


SOUND = [("audio", "eng", None, 0), ("audio", "deu", "Commentary", 1)]
SUBTITLES = ("subtitle", "fra", "Signs", 64)


def test_languages_titles_and_defaults_are_kept(tmp_path: Path) -> None:
    film = write_tracks(tmp_path)
    assert tags(film) == [*SOUND, SUBTITLES]
    out = copy(film, tmp_path / "out.mkv")
    assert tags(out) == [*SOUND, SUBTITLES]
    with av.open(str(out)) as container:
        assert container.metadata["title"] == "Holidays"
        texts = [bytes(packet) for packet in container.demux(subtitles=0) if packet.size]
    assert texts == [b"hello", b"bye"]
    assert [*tracks.losses(film, "matroska", sound=True)] == []


def test_what_a_container_cannot_hold_is_named(tmp_path: Path) -> None:
    film = write_tracks(tmp_path)
    assert tracks.fits(film, "matroska", sound=True)
    assert not tracks.fits(film, "mp4", sound=True)
    (line,) = tracks.losses(film, "mp4", sound=True)
    assert line == (
        "track 3 (subtitle: srt, fra, Signs): not copied, as mp4 cannot hold it; "
        "write a .mkv to keep it"
    )
    (line,) = tracks.losses(film, None, sound=True)
    assert line.count("track ") == 3
    assert line.endswith("not copied, because pictures are written")
    out = copy(film, tmp_path / "out.mp4")
    with av.open(str(out)) as container:
        assert container.streams.audio[1].metadata["handler_name"] == "Commentary"
    if av.library_versions["libavformat"] >= (62, 0, 0):
        # A track's title has another name in MP4.
        assert tags(out) == tags(copy(out, tmp_path / "back.mkv")) == SOUND


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("shift_s", [Fraction(50000), Fraction(90, 25), Fraction(0)])
def test_a_recording_begins_at_zero(tmp_path: Path, suffix: str, shift_s: Fraction) -> None:
    """A transport stream begins at what the transmitter's clock said."""
    source = write_clip(tmp_path / "v.ts", SOFT, sound="mp2", shift_s=shift_s)
    assert timestamps(source)[0] >= shift_s
    out = copy(source, tmp_path / f"out.{suffix}")
    before, after = timestamps(source), timestamps(out)
    sound_before, sound_after = sound_packets(source), sound_packets(out)
    assert min(after[0], sound_after[0][1]) == 0
    assert [data for data, _ in sound_after] == [data for data, _ in sound_before]
    offset = before[0] - sound_before[0][1]
    # Matroska counts in milliseconds.
    assert abs(after[0] - sound_after[0][1] - offset) <= Fraction(1, 1000)
    assert abs((after[-1] - after[0]) - (before[-1] - before[0])) <= Fraction(1, 1000)
    with av.open(str(out)) as container:
        assert container.duration is not None
        seconds = Fraction(container.duration, av.time_base)
    assert abs(seconds - (sound_before[-1][1] - sound_before[0][1])) < Fraction(1, 10)


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_no_frame_lies_before_zero(tmp_path: Path, suffix: str) -> None:
    source = write_clip(
        tmp_path / "v.ts",
        SOFT,
        sound="mp2",
        shift_s=Fraction(-2),
        options={"avoid_negative_ts": "disabled"},
    )
    assert timestamps(source)[-1] < 0
    out = copy(source, tmp_path / f"out.{suffix}")
    times = timestamps(out)
    assert [time - times[0] for time in times] == [Fraction(n, 25) for n in range(12)]
    # The encoder of the sound adds a delay of 11 ms.
    assert 0 <= times[0] < Fraction(12, 1000)
    assert sound_packets(out)[0][1] == 0


def test_a_clock_that_is_set_back(tmp_path: Path) -> None:
    """Two recordings in one file: the second begins again at the first one's time."""
    parts = [write_clip(tmp_path / f"{n}.ts", SOFT, sound="mp2") for n in range(2)]
    joined = tmp_path / "v.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    out = copy(joined, tmp_path / "out.mp4")
    times = timestamps(out)
    assert len(times) == 24
    assert times == sorted(times)
    assert times[-1] < 2
    sound = [time for _, time in sound_packets(out)]
    assert len(sound) == 2 * len(sound_packets(parts[0]))
    assert sound == sorted(set(sound))
    assert 1.8 < sound[-1] < 2.3


def test_a_video_whose_frame_times_vary_keeps_its_length(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 7, 10, 11, 12, 13, 20, 21]
    source = write_clip(tmp_path / "v.mkv", SOFT, times=times)
    with av.open(str(copy(source, tmp_path / "out.mp4"))) as container:
        assert container.duration == av.time_base * 22 // 25
