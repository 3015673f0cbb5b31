from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from fractions import Fraction
from pathlib import Path

import av
import pytest

from fedvsr.data.containers import count_frames
from fedvsr.data.encode import VideoCodec, write_video
from fedvsr.data.frames import open_clip
from fedvsr.errors import UserError
from tests.conftest import moving_texture
from tests.unit.data.clips import SOFT, timestamps, write_clip

LONG = (moving_texture(40, 32, 48) * 0.5 + 60).astype("uint8")


def num_decoded(path: Path) -> int:
    return sum(1 for _ in open_clip(path).frames())


@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_frames_that_an_edit_list_hides_are_not_missing(tmp_path: Path, suffix: str) -> None:
    # A cut without encoding: the frames before zero are only there to decode the others.
    path = write_clip(tmp_path / f"v.{suffix}", LONG, shift_s=Fraction(-16, 25))
    assert open_clip(path).num_frames == 40
    assert num_decoded(path) == count_frames(path) == 24


def test_frames_after_the_end_of_an_edit_list_are_not_missing(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", LONG)
    data = bytearray(path.read_bytes())
    # Version, flags and the number of edits come before the first edit's duration in ms.
    at = data.index(b"elst") + 12
    assert int.from_bytes(data[at : at + 4], "big") == 1600
    data[at : at + 4] = (800).to_bytes(4, "big")
    path.write_bytes(data)
    assert open_clip(path).num_frames == 40
    assert 20 <= num_decoded(path) <= count_frames(path) < 40


def test_a_file_cut_between_two_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", LONG, options={"movflags": "faststart"})
    with av.open(str(path)) as container:
        ends = [p.pos + p.size for p in container.demux(video=0) if p.pos is not None]
    path.write_bytes(path.read_bytes()[: ends[20]])
    for read in (count_frames, num_decoded):
        with pytest.raises(UserError, match="promises 40 frames and it has 21; copy or encode"):
            read(path)


def test_repeated_frames_of_an_avi_are_not_missing(tmp_path: Path) -> None:
    times = [0, 1, 2, 5, 6, 7, 10, 20]
    path = write_clip(tmp_path / "v.avi", SOFT[:8], codec="mpeg4", times=times, encoder={"g": "99"})
    assert open_clip(path).num_frames == 21
    assert num_decoded(path) == count_frames(path) == 8
    assert [time for _, time in open_clip(path).frames()] == times


@pytest.mark.parametrize(
    ("suffix", "flags"),
    [
        ("mp4", "faststart"),
        ("mp4", "frag_keyframe+empty_moov"),
        ("mov", "faststart"),
        ("mkv", ""),
        ("webm", ""),
        ("avi", ""),
        ("flv", ""),
    ],
)
@pytest.mark.parametrize("part", [0.55, 0.85])
def test_files_that_were_cut_short(tmp_path: Path, suffix: str, flags: str, part: float) -> None:
    codec = {"avi": "mpeg4", "flv": "flv", "webm": "libvpx-vp9"}.get(suffix, "libx264")
    options = {"options": {"movflags": flags}} if flags else {}
    path = write_clip(tmp_path / f"v.{suffix}", LONG, codec=codec, **options)
    assert num_decoded(path) == count_frames(path) == 40
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    for read in (count_frames, num_decoded):
        with pytest.raises(
            UserError, match=rf"v\.{suffix} is (truncated|damaged|not a read)"
        ) as refused:
            read(path)
        assert "\n" not in str(refused.value)


def test_a_broadcast_may_stop_anywhere(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.ts", LONG)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * 0.6)])
    assert 0 < count_frames(path) < 40


def test_a_name_with_a_colon_is_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_clip(tmp_path / "v.mp4", SOFT[:3], sound="aac").rename(tmp_path / "12:30.mp4")
    source, out = open_clip(Path("12:30.mp4")), Path("concat:12.mkv")
    with write_video(out, source, VideoCodec(), sound=True) as writer:
        for rgb, time in source.frames():
            writer.write(rgb, time)
    assert len(timestamps(tmp_path / out)) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["12:30.mp4", "concat:12.mkv"]


HALF_READ = """
import sys
import av
from pathlib import Path
from fedvsr.data.frames import open_clip

# Some versions of torchvision do this when they are imported.
av.logging.set_level(av.logging.ERROR)
for _ in range(100):
    for _ in open_clip(Path(sys.argv[1])).frames():
        break
print("closed")
"""


def test_a_video_that_is_read_in_part_can_be_closed(tmp_path: Path) -> None:
    """Freeing a decoder whose threads write to the log waits for ever, and holds Python's lock."""
    path = write_clip(tmp_path / "v.mp4", LONG)
    command = [sys.executable, "-c", HALF_READ, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "closed\n"


def test_a_video_is_closed_with_its_frames(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", LONG)
    with closing(open_clip(path).frames()) as frames:
        next(frames)
        assert str(path) in open_files()
    assert str(path) not in open_files()


def open_files() -> set[str]:
    return {str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.exists()}
