from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedvsr.data import pictures
from fedvsr.data.prepare import prepare
from fedvsr.data.request import Request
from fedvsr.data.sources import folder
from fedvsr.data.store import Store
from fedvsr.errors import UserError
from tests.unit.data.clips import garble, turn, write_clip, write_pictures
from tests.unit.data.trees import texture


def made(root: Path, cut: int | None = None, min_frames: int = 2) -> Store:
    tasks_and_notes = folder.recordings(root, clip_frames=cut, min_frames=min_frames)
    return prepare(
        Request(root.with_name("out"), "folder", 4, "bi", {"cut": cut}), *tasks_and_notes
    )


def nothing_made(root: Path) -> bool:
    return [path.name for path in root.parent.iterdir()] == [root.name]


def test_sub_folders_are_labels(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_pictures(root / "cats" / "b", texture(0))
    write_clip(root / "cats" / "a.mp4", texture(1))
    write_pictures(root / "alone", texture(2))
    write_clip(root / "10.mkv", texture(3))
    (root / "dogs").mkdir()
    (root / "readme.txt").write_text("")
    (root / ".hidden.mp4").write_text("")
    store = made(root)
    assert [(clip.clip_id, clip.label) for clip in store.clips] == [
        ("10", "10"), ("alone", "alone"), ("cats-a", "cats"), ("cats-b", "cats"),
    ]  # fmt: skip
    np.testing.assert_array_equal(store.clips[3].gt(), texture(0))
    error = store.clips[2].gt().astype(int) - texture(1)
    assert np.abs(error).mean() < 12
    dogs, readme = store.notes
    assert "dogs has neither videos nor folders of pictures; left out" in dogs
    assert "readme.txt is not a video by its name; left out" in readme


def test_recordings_are_cut(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    write_pictures(root / "long", texture(0, 8))
    store = made(root, cut=3)
    assert [clip.clip_id for clip in store.clips] == ["long-000", "long-001"]
    assert {clip.label for clip in store.clips} == {"long"}
    np.testing.assert_array_equal(store.clips[1].gt(), texture(0, 8)[3:6])
    assert not list((tmp_path / "out").glob("long-002*"))


def test_odd_sizes_grey_and_transparent_pictures(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    odd = texture(0, 2, 17, 27)
    write_pictures(root / "odd", odd)
    (root / "kinds").mkdir()
    rgb = texture(1, 2)
    Image.fromarray(rgb[0]).convert("L").save(root / "kinds" / "0.png")
    alpha = np.full((16, 24, 1), 7, np.uint8)
    Image.fromarray(np.concatenate((rgb[1], alpha), -1), "RGBA").save(root / "kinds" / "1.png")
    store = made(root)
    kinds, cropped = store.clips
    np.testing.assert_array_equal(cropped.gt(), odd[:, :16, :24])
    grey = kinds.gt()[0]
    np.testing.assert_array_equal(grey, grey[..., :1].repeat(3, -1))
    np.testing.assert_array_equal(kinds.gt()[1], rgb[1])
    assert [note.rpartition(": ")[2] for note in store.notes] == [
        "grey pictures are converted to RGB",
        "transparency is dropped",
        "27 x 17 is cropped to 24 x 16",
    ]  # fmt: skip


def test_rotated_videos_stand_upright(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    write_clip(root / "a.mp4", texture(0))
    turn(write_clip(root / "b.mp4", texture(0)))
    flat, turned = (clip.gt() for clip in made(root).clips)
    np.testing.assert_array_equal(turned, np.rot90(flat, -1, (1, 2)))


def test_frame_times_may_vary(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    write_clip(root / "even.mp4", texture(0, 4))
    write_clip(root / "varying.mp4", texture(0, 4), times=[0, 1, 5, 6])
    store = made(root)
    assert [clip.num_frames for clip in store.clips] == [4, 4]
    (note,) = store.notes
    assert "varying.mp4: its frame rate varies" in note


def break_picture(root: Path) -> None:
    path = write_pictures(root / "p", texture(0, 4)) / "2.png"
    path.write_bytes(path.read_bytes()[:-200])


def break_first_picture(root: Path) -> None:
    (write_pictures(root / "p", texture(0, 4)) / "0.png").write_bytes(b"\x89PNG")


def lose_picture(root: Path) -> None:
    (write_pictures(root / "p", texture(0, 4)) / "2.png").unlink()


def double_picture(root: Path) -> None:
    write_pictures(root / "p", texture(0, 4))
    Image.fromarray(texture(0)[0]).save(root / "p" / "2.jpg")


def change_size(root: Path) -> None:
    Image.fromarray(texture(0, 1, 16, 28)[0]).save(
        write_pictures(root / "p", texture(0, 4)) / "2.png"
    )


def one_frame(root: Path) -> None:
    write_pictures(root / "p", texture(0, 1))


def one_frame_video(root: Path) -> None:
    root.mkdir()
    write_clip(root / "p.mp4", texture(0, 1))


def too_small(root: Path) -> None:
    write_pictures(root / "p", texture(0, 2, 3, 24))


def no_video(root: Path) -> None:
    root.mkdir()
    (root / "p.mp4").write_bytes(bytes(1000))


def damaged_video(root: Path) -> None:
    root.mkdir()
    path = write_clip(root / "p.mp4", texture(0, 40), options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[:4000])


def garbled_video(root: Path) -> None:
    root.mkdir()
    garble(write_clip(root / "p.mp4", texture(0, 40, 96, 128)))


def same_name(root: Path) -> None:
    root.mkdir()
    for suffix in ("mp4", "mkv"):
        write_clip(root / f"p.{suffix}", texture(0))


@pytest.mark.parametrize(
    ("spoil", "match"),
    [
        (break_picture, r"p/2\.png is not a readable picture: "),
        (break_first_picture, r"p/0\.png is not a readable picture: "),
        (lose_picture, r"p: frame 2 is missing after 1\.png \(the next is 3\); restore it"),
        (double_picture, r"p has two pictures with the number 2; keep one"),
        (change_size, r"p: 2\.png has 28 x 16 pixels, the first 24 x 16"),
        (one_frame, r"p has 1 frame and needs at least 2; remove it, or lower --min-frames"),
        (one_frame_video, r"p\.mp4 has 1 frame and needs at least 2"),
        (too_small, r"p is 24 x 3 pixels, too small for x4; remove it"),
        (no_video, r"p\.mp4 is not a readable video"),
        (damaged_video, r"p\.mp4 is (damaged after|truncated)"),
        (garbled_video, r"p\.mp4 is damaged in frame \d+; copy or encode it again"),
        (same_name, r"p\.mkv and .*p\.mp4 would both become clip p; rename one"),
    ],
)  # fmt: skip
def test_broken_recordings_end_in_one_line(tmp_path: Path, spoil, match: str) -> None:
    root = tmp_path / "mine"
    spoil(root)
    with pytest.raises(UserError, match=match) as error:
        made(root)
    assert "\n" not in str(error.value)
    assert nothing_made(root)


def test_a_video_that_ends_early_is_noted(tmp_path: Path) -> None:
    # A live recording in Matroska says neither how many frames nor how many bytes there are.
    root = tmp_path / "mine"
    root.mkdir()
    path = write_clip(root / "p.mkv", texture(0, 60))
    data = bytearray(path.read_bytes()[: path.stat().st_size // 2])
    at = data.index(bytes.fromhex("18538067")) + 4
    data[at : at + 8] = bytes.fromhex("01ffffffffffffff")
    path.write_bytes(data)
    (note,) = made(root).notes
    assert re.search(r"p\.mkv has \d+ frames; its duration promises 60", note)


def test_what_8_bit_clips_do_not_keep_is_noted(tmp_path: Path) -> None:
    root = tmp_path / "mine"
    root.mkdir()
    frames = texture(0, 3)
    write_clip(root / "deep.mp4", frames, bits=10)
    fields = {"flags": 1 << 18 | 1 << 29, "encoder": {"x264-params": "bff=1"}}
    write_clip(root / "fields.mp4", frames, **fields)
    (root / "p").mkdir()
    for index, rgb in enumerate(frames):
        pictures.write(root / "p" / f"{index}.png", rgb.astype(np.uint16) * 257)
    store = made(root)
    assert [note.removeprefix(f"{root}/") for note in store.notes] == [
        "deep.mp4: 10 bits per sample are reduced to 8",
        "fields.mp4 is interlaced; its frames are used as they are",
        "p: 16 bits per sample are reduced to 8",
    ]
    np.testing.assert_array_equal(store.clips[2].gt(), frames)


def test_min_frames_allows_a_single_frame(tmp_path: Path) -> None:
    one_frame(tmp_path / "mine")
    assert made(tmp_path / "mine", min_frames=1).clips[0].num_frames == 1


def test_folders_without_clips(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="and its sub-folders have neither videos nor folders"):
        folder.recordings(tmp_path)
    with pytest.raises(UserError, match="nowhere is not a readable folder: No such file"):
        folder.recordings(tmp_path / "nowhere")


def without_rights(function: Callable[[], object]) -> str:
    """Run a function in a process without root's rights; return its UserError as text."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
            function()
            os.write(writer, b"nothing was refused")
        except UserError as error:
            os.write(writer, str(error).encode())
        except BaseException as error:
            os.write(writer, f"{type(error).__name__}: {error}".encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as file:
        return file.read()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("p", "p is not a readable folder: Permission denied"),
        ("p/0.png", "p/0.png is not a readable picture: Permission denied"),
        ("v.mp4", "v.mp4 is not a readable video: Permission denied"),
    ],
)
def test_no_permission(name: str, reason: str) -> None:
    # pytest's own temporary folder is closed to other users.
    with tempfile.TemporaryDirectory() as parent:
        os.chmod(parent, 0o755)
        root = Path(parent) / "mine"
        write_pictures(root / "p", texture(0))
        write_clip(root / "v.mp4", texture(0))
        (root / name).chmod(0)
        message = without_rights(lambda: folder.recordings(root))
        (root / name).chmod(0o700)
        assert message == f"{root}/{reason}"
