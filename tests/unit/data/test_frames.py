from __future__ import annotations

import struct
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from fedvsr.data.colour import Colour
from fedvsr.data.frames import Folder, Video, clips_in, natural, open_clip
from fedvsr.errors import UserError
from tests.unit.data.clips import SOFT, write_clip, write_pictures


def test_numbers_in_names_sort_by_value() -> None:
    names = ["f10.png", "f2.png", "a.png", "f1b3.png", "f1b20.png", "002.png", "10.png"]
    assert sorted(names, key=natural) == [
        "002.png", "10.png", "a.png", "f1b3.png", "f1b20.png", "f2.png", "f10.png",
    ]  # fmt: skip


def test_a_folder_of_pictures(tmp_path: Path) -> None:
    folder = write_pictures(tmp_path / "p", SOFT)
    (folder / "notes.txt").write_text("not a picture")
    (folder / ".hidden.png").write_text("hidden")
    clip = open_clip(folder, Fraction(30000, 1001))
    assert isinstance(clip, Folder)
    assert (clip.num_frames, clip.height, clip.width) == (12, 32, 48)
    read = list(clip.frames())
    np.testing.assert_array_equal(np.stack([rgb for rgb, _ in read]), SOFT)
    assert [time * clip.time_base for _, time in read][2] == Fraction(2 * 1001, 30000)
    assert len(list(clip.frames())) == 12, "it can be read again"


def test_pictures_of_other_kinds(tmp_path: Path) -> None:
    folder = tmp_path / "p"
    folder.mkdir()
    Image.fromarray(SOFT[0]).convert("L").save(folder / "1.png")
    Image.fromarray(SOFT[1]).convert("RGBA").save(folder / "2.png")
    Image.fromarray(SOFT[2]).save(folder / "3.jpg", quality=95)
    frames = [rgb for rgb, _ in open_clip(folder).frames()]
    assert {rgb.shape for rgb in frames} == {(32, 48, 3)}
    np.testing.assert_array_equal(frames[1], SOFT[1])


def test_bad_folders(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"there is no video or folder .*nowhere"):
        open_clip(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"has no pictures \(\.bmp, \.jpeg, \.jpg, \.png\)"):
        open_clip(tmp_path)
    folder = write_pictures(tmp_path / "p", SOFT)
    Image.fromarray(SOFT[0, :16]).save(folder / "7.png")
    with pytest.raises(UserError, match=r"p: 7\.png has 48 x 16 pixels, the first 48 x 32"):
        list(open_clip(folder).frames())
    (folder / "7.png").write_bytes((folder / "6.png").read_bytes()[:300])
    with pytest.raises(UserError, match=r"7\.png is not a readable picture"):
        list(open_clip(folder).frames())


def test_a_video_says_what_it_is(tmp_path: Path) -> None:
    colour = Colour(9, True, 9, 14)
    path = write_clip(tmp_path / "v.mkv", SOFT, colour=colour, aspect=Fraction(4, 3))
    clip = open_clip(path)
    assert isinstance(clip, Video)
    assert (clip.height, clip.width, clip.rate, clip.has_sound) == (32, 48, 25, False)
    assert (clip.colour, clip.aspect) == (colour, Fraction(4, 3))
    error = np.stack([rgb for rgb, _ in clip.frames()]).astype(int) - SOFT
    assert np.abs(error.mean((0, 1, 2))).max() < 0.3


def test_untagged_videos_are_read_as_players_do(tmp_path: Path) -> None:
    small = write_clip(tmp_path / "s.mp4", SOFT, tagged=False)
    assert open_clip(small).colour == Colour(6)
    large = np.zeros((1, 720, 1280, 3), np.uint8)
    assert open_clip(write_clip(tmp_path / "l.mp4", large, tagged=False)).colour == Colour(1)


@pytest.mark.parametrize(
    ("matrix", "turn"),
    [
        ((0, 1, -1, 0), lambda x: np.rot90(x, -1)),
        ((-1, 0, 0, -1), lambda x: np.rot90(x, 2)),
        ((0, -1, 1, 0), lambda x: np.rot90(x, 1)),
        ((-1, 0, 0, 1), lambda x: x[:, ::-1]),
    ],
)
def test_rotation_is_applied(tmp_path: Path, matrix: tuple[int, ...], turn) -> None:
    plain = write_clip(tmp_path / "p.mp4", SOFT)
    data = bytearray(plain.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (n << 16 for n in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    turned = tmp_path / "t.mp4"
    turned.write_bytes(data)
    (expected, *_), (rotated, *_) = (
        [rgb for rgb, _ in open_clip(path).frames()] for path in (plain, turned)
    )
    np.testing.assert_array_equal(rotated, turn(expected))
    clip = open_clip(turned)
    assert (clip.height, clip.width) == turn(expected).shape[:2]


def test_files_that_are_not_videos(tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_text("not a video")
    with pytest.raises(UserError, match=r"text\.mp4 is not a readable video"):
        open_clip(path)
    with av.open(str(tmp_path / "s.wav"), "w") as out:
        stream = out.add_stream("pcm_s16le", rate=8000)
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        tone.sample_rate = 8000
        out.mux([*stream.encode(tone), *stream.encode()])
    with pytest.raises(UserError, match=r"s\.wav has no video"):
        open_clip(tmp_path / "s.wav")


def test_clips_in(tmp_path: Path) -> None:
    for name in ("10", "2"):
        write_pictures(tmp_path / "set" / name, SOFT[:1])
    write_clip(tmp_path / "set" / "3.mp4", SOFT[:1])
    (tmp_path / "set" / "empty").mkdir()
    names = [path.name for path in clips_in(tmp_path / "set")]
    assert names == ["2", "3.mp4", "10"]
    assert clips_in(tmp_path / "set" / "2") == [tmp_path / "set" / "2"]
    with pytest.raises(UserError, match="has neither pictures nor videos"):
        clips_in(tmp_path / "set" / "empty")
