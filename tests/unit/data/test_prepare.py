from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from pathlib import Path
from threading import Barrier, Event
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fedvsr.data import clips
from fedvsr.data import prepare as preparation
from fedvsr.data.clips import Frames
from fedvsr.data.degrade import degrade
from fedvsr.data.prepare import prepare
from fedvsr.data.request import Request, existing
from fedvsr.data.sources import folder
from fedvsr.data.store import Store
from fedvsr.errors import UserError
from tests.unit.data.clips import Usage, write_pictures
from tests.unit.data.trees import texture


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for seed in range(4):
        write_pictures(tmp_path / "in" / f"c{seed}", texture(seed))
    return tmp_path / "in"


def request_for(source: Path, **changes: Any) -> Request:
    settings: dict[str, Any] = {"source": "folder", "scale": 4, "degradation": "bi"}
    return Request(source.with_name("out"), **settings | changes)


def make(source: Path, workers: int = 1, progress: Any = None, **changes: Any) -> Store:
    request = request_for(source, **changes)
    return prepare(request, *folder.recordings(source), workers, progress)


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def failing_after(
    monkeypatch: pytest.MonkeyPatch, count: int, error: BaseException
) -> Callable[[], int]:
    """Fail in the middle of the clip after `count` clips; return a counter of clips begun."""
    begun = 0

    def fails(pairs: Iterable[Any], fail: bool) -> Iterable[Any]:
        for index, pair in enumerate(pairs):
            if fail and index == 2:
                raise error
            yield pair

    def write_clip(folder: Path, clip_id: str, label: str, pairs: Any, *how: Any) -> Any:
        nonlocal begun
        begun += 1
        return clips.write_clip(folder, clip_id, label, fails(pairs, begun > count), *how)

    monkeypatch.setattr(preparation, "write_clip", write_clip)
    return lambda: begun


def test_the_result_does_not_depend_on_the_workers(source: Path) -> None:
    make(source, workers=4)
    four = content(source.with_name("out"))
    shutil.rmtree(source.with_name("out"))
    make(source, workers=1)
    assert content(source.with_name("out")) == four
    assert sorted(p.name for p in source.parent.iterdir()) == ["in", "out"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_a_stopped_preparation_is_resumed(
    source: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    make(source)
    whole = content(source.with_name("out"))
    shutil.rmtree(source.with_name("out"))
    with monkeypatch.context() as patched:
        failing_after(patched, 2, error)
        with pytest.raises((UserError, KeyboardInterrupt)) as raised:
            make(source)
    if isinstance(error, OSError):
        assert str(raised.value).endswith("out; free some and retry, finished clips are kept")
    partial = source.with_name(".out-partial")
    assert sorted(path.name for path in source.parent.iterdir()) == [".out-partial", "in"]
    assert not [path for path in partial.iterdir() if path.name.startswith((".", "c2", "c3"))]
    begun = failing_after(monkeypatch, 99, error)
    seen = list[tuple[float, int]]()
    make(source, progress=lambda done, total: seen.append((done, total)))
    assert begun() == 2
    assert seen == [(i, 6) for i in range(1, 7)]
    assert content(source.with_name("out")) == whole
    assert not partial.exists()


def test_leftovers_of_a_killed_process_are_deleted(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing_after(patched, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(source)
    partial = source.with_name(".out-partial")
    source.with_name(".out.lock").touch()
    for name in (".c2_gt.npy.123.tmp", "c2_gt.npy", "c9_gt.npy"):
        (partial / name).write_bytes(b"half")
    (partial / "c3.done.json").write_text('{"entries": [')
    store = make(source)
    assert [clip.num_frames for clip in store.clips] == [3] * 4
    assert len(list(source.with_name("out").iterdir())) == 9
    assert sorted(path.name for path in source.parent.iterdir()) == ["in", "out"]


def test_clips_of_changed_files_are_made_again(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing_after(patched, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(source)
    changed = np.ascontiguousarray(texture(0)[0, ::-1])
    Image.fromarray(changed).save(source / "c0" / "0.png")
    np.testing.assert_array_equal(make(source).clips[0].gt()[0], changed)


def test_one_bad_clip_keeps_the_others(source: Path) -> None:
    good = (source / "c2" / "1.png").read_bytes()
    (source / "c2" / "1.png").write_bytes(good[:100])
    with pytest.raises(UserError, match=r"c2/1\.png is not a readable picture"):
        make(source)
    partial = source.with_name(".out-partial")
    assert {path.name.partition("_")[0] for path in partial.glob("*_gt.npy")} >= {"c0", "c1"}
    assert not list(partial.glob("c2*"))
    assert not source.with_name("out").exists()
    (source / "c2" / "1.png").write_bytes(good)
    assert len(make(source).clips) == 4


def test_a_recording_that_breaks_late_leaves_none_of_its_clips(source: Path) -> None:
    write_pictures(source / "long", texture(9, 8))
    (source / "long" / "7.png").write_bytes(b"")
    request = request_for(source)
    with pytest.raises(UserError, match=r"long/7\.png"):
        prepare(request, *folder.recordings(source, clip_frames=3), workers=1)
    names = {path.name for path in source.with_name(".out-partial").iterdir()}
    assert names >= {"c0-000_gt.npy", "c3-000_gt.npy"}
    assert not {name for name in names if "long" in name}


def test_the_first_error_stops_the_others(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (source / "c0" / "2.png").write_bytes(b"")
    begun = failing_after(monkeypatch, 99, KeyboardInterrupt())
    with pytest.raises(UserError, match=r"c0/2\.png"):
        make(source)
    assert begun() == 1


def test_an_error_stops_a_clip_that_is_being_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "in"
    write_pictures(source / "bad", texture(0))
    write_pictures(source / "long", texture(1, 200))
    (source / "bad" / "1.png").write_bytes(b"")
    begun, read = Event(), 0

    def slowly(pairs: Iterable[Any]) -> Iterable[Any]:
        nonlocal read
        for pair in pairs:
            begun.set()
            time.sleep(0.01)
            read += 1
            yield pair

    def write_clip(folder: Path, clip_id: str, label: str, pairs: Any, *how: Any) -> Any:
        if clip_id == "bad":
            assert begun.wait(60)
        else:
            pairs = slowly(pairs)
        return clips.write_clip(folder, clip_id, label, pairs, *how)

    monkeypatch.setattr(preparation, "write_clip", write_clip)
    with pytest.raises(UserError, match=r"bad/1\.png is not a readable picture"):
        make(source, workers=2)
    assert 0 < read < 100
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_disk_space_is_checked_first(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 4 clips of 3 frames: 12 * 3 * (16 * 24 + 4 * 6) bytes, and 16 MiB to spare.
    needed = 12 * 3 * (16 * 24 + 4 * 6) + (16 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed - 1))
    begun = failing_after(monkeypatch, 99, KeyboardInterrupt())
    with pytest.raises(
        UserError, match=r"out needs 16\.8 MB and its disk has 16\.8 MB free; free some, or"
    ):
        make(source)
    assert begun() == 0
    assert [path.name for path in source.parent.iterdir()] == ["in"]
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(0, 0, needed))
    assert make(source).clips


def test_a_full_disk_while_a_file_is_closed(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"no space left on the disk of .*out; free") as error:
        make(source)
    assert "\n" not in str(error.value)
    assert [path.name for path in source.parent.iterdir()] == ["in"]


def test_a_folder_that_cannot_be_written(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: Any, **__: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", denied)
    with pytest.raises(UserError, match=r"^cannot access .*: Permission denied; check its perm"):
        make(source)


def test_existing_folders_are_not_lost(source: Path) -> None:
    out = source.with_name("out")
    out.mkdir()
    assert existing(request_for(source)) is None, "an empty folder is free to use"
    first = make(source)
    assert existing(request_for(source)) == first
    assert make(source) == first, "the same request returns the store"
    with pytest.raises(UserError, match=r"made with other settings \(scale 4, not 2\); choose"):
        make(source, scale=2)
    assert make(source, scale=2, overwrite=True).clips[0].scale == 2
    assert sorted(path.name for path in source.parent.iterdir()) == ["in", "out"]
    with pytest.raises(UserError, match="in exists and is not a clip store; choose another"):
        prepare(Request(source, "folder", 4, "bi", overwrite=True), *folder.recordings(source))


def test_an_unfinished_store_with_other_settings_is_refused(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        failing_after(patched, 2, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            make(source)
    with pytest.raises(UserError, match=r"unfinished store with .* \(scale 4, not 2\); finish it"):
        make(source, scale=2)
    store = make(source, scale=2, overwrite=True)
    assert {clip.scale for clip in store.clips} == {2}
    assert store.clips[0].lq().shape[1:] == (8, 12, 3)


def test_one_process_at_a_time(source: Path) -> None:
    request = request_for(source)
    with (
        preparation.workshop(request),
        pytest.raises(UserError, match=r"another process is preparing .*out; wait for it"),
    ):
        make(source)
    assert make(source).clips


def test_a_process_that_is_stopped_is_not_waited_for(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvsr.data.store_lock._SILENT_S", 0.1)
    request = request_for(source)
    with (
        preparation.workshop(request),
        pytest.raises(UserError, match=r"has written nothing for 0.1 s; is it stopped\? end it"),
        preparation.workshop(request, wait=True),
    ):
        pass
    with preparation.workshop(request, wait=True):
        pass


def at_the_same_time(source: Path) -> list[Store | UserError]:
    """The results or errors of two preparations that start together and wait for each other."""
    request, barrier = request_for(source), Barrier(2)

    def waiting(_: int) -> Store | UserError:
        tasks_and_notes = folder.recordings(source)
        barrier.wait(60)
        try:
            return prepare(request, *tasks_and_notes, 1, wait=True)
        except UserError as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(waiting, range(2)))


def test_a_waiting_preparation_gets_the_store_of_the_other(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = failing_after(monkeypatch, 99, KeyboardInterrupt())
    one, other = at_the_same_time(source)
    assert isinstance(one, Store)
    assert one == other
    assert begun() == 4, "every clip is made once"
    assert sorted(path.name for path in source.parent.iterdir()) == ["in", "out"]


def test_a_waiting_preparation_takes_over_if_the_other_fails(
    source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = OSError(errno.ENOSPC, "No space left on device")
    write, calls = clips.write_clip, count()

    def fails_once(*arguments: Any) -> Any:
        if next(calls) == 2:
            raise error
        return write(*arguments)

    monkeypatch.setattr(preparation, "write_clip", fails_once)
    results = at_the_same_time(source)
    (store,) = (result for result in results if isinstance(result, Store))
    (failure,) = (result for result in results if isinstance(result, UserError))
    assert "no space left" in str(failure)
    assert len(store.clips) == 4
    assert next(calls) == 3 + 2, "the clips that the other finished are kept"
    assert sorted(path.name for path in source.parent.iterdir()) == ["in", "out"]


def test_memory_does_not_grow_with_a_clip(tmp_path: Path) -> None:
    """Frames are written one by one, so that at most two are held."""
    alive = most = 0

    class Counted(np.ndarray[Any, Any]):
        def __del__(self) -> None:
            nonlocal alive
            alive -= self.base is None

    def frames() -> Iterable[tuple[Frames, None]]:
        nonlocal alive, most
        for _ in range(20):
            frame = Counted((16, 24, 3), np.uint8)
            frame.fill(3)
            alive += 1
            most = max(most, alive)
            yield frame, None
            del frame

    clips.write_clip(tmp_path, "a", "", frames(), 4, "bi")
    assert most <= 2


def test_a_store_is_reduced_as_asked_for(source: Path) -> None:
    blurred = make(source, degradation="bd")
    assert blurred.degradation == "bd"
    for clip in blurred.clips:
        np.testing.assert_array_equal(clip.lq(), degrade(np.asarray(clip.gt()), "bd", 4))
        assert not np.array_equal(clip.lq(), degrade(np.asarray(clip.gt()), "bi", 4))
