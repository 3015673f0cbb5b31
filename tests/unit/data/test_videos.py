from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from fedvsr.data import videos
from fedvsr.data.clips import Clip, Frames, checksum
from fedvsr.data.config import DataConfig
from fedvsr.data.degrade import bicubic_downscale, quantise
from fedvsr.data.frames import open_clip
from fedvsr.data.split import Split, prepare
from fedvsr.data.store import read_store
from fedvsr.errors import UserError
from tests.conftest import moving_texture, write_video
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.clips import Usage, by_hand, garble, turn, write_clip, write_codes


def prepared(tmp_path: Path, *paths: Path, **settings: Any) -> Split:
    base: dict[str, Any] = {"clip_frames": 4, "num_clients": 2, "cache_dir": str(tmp_path / "c")}
    names = [str(path) for path in paths]
    return prepare(DataConfig(videos=names, **{**base, **settings}), 0, lambda *_: None)


def decode(path: Path) -> Frames:
    return np.stack([rgb for rgb, _ in open_clip(path).frames()])


def test_clips_hold_every_frame_once_and_nothing_is_in_both_sets(
    tmp_path: Path, video: Path
) -> None:
    split = prepared(tmp_path, video, clip_frames=7, test_clips_per_video=2)
    frames = decode(video)
    assert frames.shape == (40, 48, 64, 3)
    clips = [*split.train, *split.test]
    assert [clip.clip_id for clip in clips] == [f"texture-00{i}" for i in range(5)]
    np.testing.assert_array_equal(np.concatenate([clip.gt() for clip in clips]), frames[:35])
    low = bicubic_downscale(frames[:35].astype(np.float32) / 255)
    np.testing.assert_array_equal(np.concatenate([c.lq() for c in clips]), quantise(low))


def test_a_video_is_cut_again_if_it_or_the_cut_changes(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, moving_texture(12, 32, 32))

    def num_stores(**settings: Any) -> int:
        prepared(tmp_path, path, **settings)
        return len(list((tmp_path / "c").iterdir()))

    assert num_stores() == 1
    path.touch()
    assert num_stores(num_clients=1) == 1
    assert num_stores(clip_frames=3) == 2
    assert num_stores(scale=2) == 3
    assert num_stores(max_clips_per_video=3) == 4
    write_video(path, moving_texture(12, 32, 32, seed=1))
    assert num_stores() == 5


def test_a_store_is_not_made_twice(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path, video)
    monkeypatch.setattr(videos, "prepare", lambda *_, **__: pytest.fail("cut again"))
    assert prepared(tmp_path, video) == first


def test_a_store_of_an_earlier_decoding_is_not_used(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = prepared(tmp_path, video)
    monkeypatch.setattr(videos, "_DECODING", videos._DECODING + 1)
    assert prepared(tmp_path, video).train[0].folder != first.train[0].folder


def test_progress_counts_frames(tmp_path: Path, video: Path) -> None:
    steps = list[tuple[str, int, int]]()
    settings: dict[str, Any] = {"clip_frames": 4, "num_clients": 2, "max_clips_per_video": 3}
    config = DataConfig(videos=[str(video)], cache_dir=str(tmp_path), **settings)
    prepare(config, 0, lambda *step: steps.append(step))
    assert steps == [("texture.mp4", i, 12) for i in range(13)]


def checksums(clips: Iterable[Clip]) -> dict[str, str]:
    return {clip.clip_id: checksum(clip.gt()) + checksum(clip.lq()) for clip in clips}


@pytest.mark.parametrize(("width", "matrix"), [(96, 6), (1280, 1)], ids=["SD", "HD"])
def test_every_command_takes_the_same_clips_from_a_video(
    tmp_path: Path, width: int, matrix: int
) -> None:
    """Untagged videos are BT.601 if they are small and BT.709 if they are wide."""
    rng = np.random.default_rng(0)
    # Flat patches of 16 x 16 pixels, 4 frames.
    codes = rng.integers((40, 100, 100), (210, 157, 157), (4, 2, width // 16, 3))
    planes = [
        [frame[..., i].repeat(size, 0).repeat(size, 1) for i, size in enumerate((16, 8, 8))]
        for frame in codes
    ]
    folder = tmp_path / "own"
    folder.mkdir()
    path = write_codes(folder / "v.mp4", planes)
    named = prepared(tmp_path, path, clip_frames=2, num_clients=1)
    settings = {"clip_frames": 2, "num_clients": 1, "cache_dir": str(tmp_path / "c")}
    unprepared = prepare(
        DataConfig(train=[str(folder)], held_out=["v-001"], **settings), 0, lambda *_: None
    )
    arguments = ("--source", str(folder), "--out", str(tmp_path / "store"), "--clip-frames", "2")
    assert fedvsr("data", "prepare", "folder", *arguments) == 0
    commanded = read_store(tmp_path / "store")
    assert commanded is not None
    # `upscale` and `evaluate` read these frames.
    frames = decode(path)
    expected = by_hand(*np.moveaxis(codes.astype(float), -1, 0), matrix=matrix)
    assert np.abs(frames[:, 8::16, 8::16] - expected).max() <= 1
    np.testing.assert_array_equal(np.concatenate([clip.gt() for clip in commanded]), frames)
    sums = checksums(commanded)
    assert list(sums) == ["v-000", "v-001"]
    assert checksums([*named.train, *named.test]) == sums
    assert checksums([*unprepared.train, *unprepared.test]) == sums


def test_odd_sizes_are_cropped_to_the_scale(tmp_path: Path) -> None:
    path = tmp_path / "odd.mp4"
    write_video(path, moving_texture(12, 34, 46))
    (clip, *_) = prepared(tmp_path, path).train
    assert (clip.height, clip.width) == (32, 44)
    assert clip.lq().shape == (4, 8, 11, 3)


def test_bad_videos_end_in_one_line_and_leave_nothing(tmp_path: Path, video: Path) -> None:
    whole = video.read_bytes()
    cases = {
        "missing.mp4": (None, r"there is no video .*missing\.mp4"),
        "text.mp4": (b"not a video at all", r"text\.mp4 is not a readable video"),
        "empty.mp4": (b"", r"empty\.mp4 is not a readable video"),
        # The index of an mp4 is at its end; without it nothing can be read.
        "cut.mp4": (whole[: len(whole) // 2], r"cut\.mp4 is not a readable video"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(UserError, match=message) as refused:
            prepared(tmp_path, path)
        assert "\n" not in str(refused.value)
    cache = tmp_path / "c"
    assert not cache.exists() or list(cache.iterdir()) == []


def test_a_truncated_stream_is_noticed(tmp_path: Path, video: Path) -> None:
    # With the index first (as for streaming) and the data cut off, the first frames still decode.
    data = video.read_bytes()
    moov = data.rindex(b"moov") - 4
    mdat = data.index(b"mdat") - 4
    shifted = bytearray(data[moov:])
    table = shifted.index(b"stco") + 12
    count = int.from_bytes(shifted[table - 4 : table], "big")
    for i in range(count):
        at = slice(table + 4 * i, table + 4 * i + 4)
        offset = int.from_bytes(shifted[at], "big") + len(shifted)
        shifted[at] = offset.to_bytes(4, "big")
    fast = data[:mdat] + bytes(shifted) + data[mdat:moov]
    path = tmp_path / "fast.mp4"
    path.write_bytes(fast)
    assert len(decode(path)) == 40
    path.write_bytes(fast[: len(data[:mdat]) + len(shifted) + (moov - mdat) // 2])
    with pytest.raises(UserError, match=r"fast\.mp4 is (truncated|damaged)"):
        prepared(tmp_path, path)
    assert list((tmp_path / "c").iterdir()) == []


def test_frames_that_the_decoder_made_up_are_refused(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", moving_texture(40, 96, 128))
    whole = decode(path)
    garble(path)
    with av.open(str(path)) as container:
        made_up = list(container.decode(video=0))
    assert len(made_up) == len(whole) == 40, "all frames decode"
    with pytest.raises(UserError, match=r"v\.mp4 is damaged in frame \d+; copy or encode it"):
        prepared(tmp_path, path)
    assert list((tmp_path / "c").iterdir()) == []


def test_a_video_is_rotated_by_its_metadata(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "v.mp4", moving_texture(12, 32, 48))
    flat = decode(path)
    clip = prepared(tmp_path, turn(path)).train[0]
    assert (clip.height, clip.width) == (48, 32)
    np.testing.assert_array_equal(clip.gt(), np.rot90(flat, -1, (1, 2))[:4])


def test_disk_space_is_checked_before_a_video_is_cut(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 10 clips of 4 frames, and 16 MiB to spare.
    needed = 10 * 4 * 3 * (48 * 64 + 12 * 16) + (16 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    with pytest.raises(
        UserError, match=r"texture-\w+ needs 17\.2 MB and its disk has 17\.2 MB free"
    ):
        prepared(tmp_path, video)
    assert list((tmp_path / "c").iterdir()) == []
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    assert prepared(tmp_path, video).train


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, r"^no space left on the disk of .*/texture-\w+; free some and retry"),
        (
            errno.EACCES,
            r"^cannot access v\.npy: Permission denied; check its permissions and retry$",
        ),
    ],
)
def test_errors_of_the_file_system_are_one_line(
    tmp_path: Path, video: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def refused(*_: object) -> None:
        raise OSError(number, os.strerror(number), "v.npy")

    monkeypatch.setattr(os, "fsync", refused)
    with pytest.raises(UserError, match=message):
        prepared(tmp_path, video)
    assert list((tmp_path / "c").iterdir()) == []


def test_videos_that_are_too_short(tmp_path: Path, video: Path) -> None:
    with pytest.raises(
        UserError, match=r"has 40 frames and needs at least 50; .* data\.clip_frames"
    ):
        prepared(tmp_path, video, clip_frames=50)
    with pytest.raises(UserError, match="gives 1 clips of 30 frames, of which 1 would be held"):
        prepared(tmp_path, video, clip_frames=30)
    with pytest.raises(UserError, match="there are only 9 training clips"):
        prepared(tmp_path, video, num_clients=10)


def test_package_videos(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'nopackage' is not installed.*fedvsr\[demo\]"):
        videos.resolve("package:nopackage/a.mp4")
    assert videos.resolve("package:fedvsr/presets/demo.yaml").name == "demo.yaml"


def test_a_clip_that_is_missing_on_this_node(tmp_path: Path) -> None:
    clip = Clip("a-000", "a", str(tmp_path), 4, 32, 32, 4)
    with pytest.raises(UserError, match=r"clip a-000 is not at .*data\.cache_dir"):
        clip.gt()
