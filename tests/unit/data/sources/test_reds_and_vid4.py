from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvsr.data.config import REDS4
from fedvsr.data.prepare import prepare
from fedvsr.data.request import Request
from fedvsr.data.sources import reds, vid4
from fedvsr.data.store import Store
from fedvsr.errors import UserError
from tests.unit.data import trees


def made(out: Path, source: str, tasks_and_notes: tuple[list[Any], list[str]]) -> Store:
    return prepare(Request(out, source, 4, "bi"), *tasks_and_notes)


@pytest.mark.parametrize("unpacked", [False, True])
def test_reds_is_regrouped(tmp_path: Path, unpacked: bool) -> None:
    root = trees.reds(tmp_path / "REDS", train=(0, 11, 239), val=(0, 29), unpacked=unpacked)
    store = made(tmp_path / "out", "reds", reds.recordings(root, num_frames=trees.FRAMES))
    assert [clip.clip_id for clip in store.clips] == ["000", "011", "239", "240", "269"]
    for clip, seed in zip(store.clips, (0, 11, 239, 240, 269), strict=True):
        np.testing.assert_array_equal(clip.gt(), trees.texture(seed))
        np.testing.assert_array_equal(clip.lq(), trees.reduced(trees.texture(seed)) // 2)
    assert store.source == "reds"
    assert {clip.label for clip in store.clips} == {"reds"}
    assert "265 of the 270 clips are missing in" in store.notes[0]
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        "manifest.json", *(f"{c.clip_id}_{kind}.npy" for c in store.clips for kind in ("gt", "lq"))
    }  # fmt: skip


def test_reds_low_resolution_is_made_if_missing(tmp_path: Path) -> None:
    root = trees.reds(tmp_path / "REDS", train=(0,), val=(), with_lq=False)
    store = made(tmp_path / "out", "reds", reds.recordings(root, num_frames=trees.FRAMES))
    np.testing.assert_array_equal(store.clips[0].lq(), trees.reduced(trees.texture(0)))
    root = trees.reds(tmp_path / "given", train=(0,), val=())
    tasks_and_notes = reds.recordings(root, num_frames=trees.FRAMES, make_lq=True)
    again = made(tmp_path / "again", "reds", tasks_and_notes)
    np.testing.assert_array_equal(again.clips[0].lq(), trees.reduced(trees.texture(0)))


def test_reds_that_is_already_regrouped(tmp_path: Path) -> None:
    root = trees.reds(tmp_path / "REDS", train=(0, 240), val=(0,))
    tasks, _ = reds.recordings(root, num_frames=trees.FRAMES)
    assert [task.clip_id for task in tasks] == ["000", "240"]
    assert tasks[1].gt.path == root / "train_sharp" / "240"


def test_chosen_clips_of_reds(tmp_path: Path) -> None:
    root = trees.reds(tmp_path / "REDS", train=(0, 1, 11, 15, 20), val=())
    tasks, notes = reds.recordings(root, num_frames=trees.FRAMES, only=REDS4)
    assert [task.clip_id for task in tasks] == ["000", "011", "015", "020"]
    assert notes == []
    with pytest.raises(UserError, match="no REDS clip 270, 4; its clips are 000 to 269"):
        reds.recordings(root, only=("000", "270", "4"))


def test_incomplete_reds(tmp_path: Path) -> None:
    def refused(match: str, num_frames: int = trees.FRAMES) -> None:
        with pytest.raises(UserError, match=match):
            reds.recordings(root, num_frames=num_frames)

    root = tmp_path / "nowhere"
    refused("has neither train_sharp/000 nor val_sharp/000")
    root = trees.reds(tmp_path / "REDS")
    refused(r"train_sharp/000 has 3 frames, not 100; copy it again", 100)
    low = root / "train_sharp_bicubic/X4/011"
    (low / "00000001.png").unlink()
    refused(r"011 has 3 frames and .*X4/011 has 2 \(00000001 is only in the first\)")
    shutil.rmtree(low)
    refused("lacks the low-resolution frames of 011, and has those of other clips; complete them")
    shutil.copytree(root / "train_sharp/011", low)
    refused(r"X4/011 has 24 x 16 pixels; x4 of .*train_sharp/011 needs 6 x 4")
    (root / "train_sharp/000/00000000.png").rename(root / "train_sharp/000/00000003.png")
    refused(r"train_sharp/000 starts at 00000001\.png, not at 0")


@pytest.mark.parametrize("low", ["BIx4", None])
def test_vid4(tmp_path: Path, low: str | None) -> None:
    root = trees.vid4(tmp_path / "Vid4", low)
    store = made(tmp_path / "out", "vid4", vid4.recordings(root))
    sizes = {clip.clip_id: (clip.height, clip.width) for clip in store.clips}
    assert sizes == trees.VID4_SIZES
    assert [clip.num_frames for clip in store.clips] == [2, 3, 4, 5]
    walk = trees.texture(503, 5, 12, 24)
    np.testing.assert_array_equal(store.clips[3].gt(), walk)
    expected = trees.reduced(walk) // (2 if low else 1)
    np.testing.assert_array_equal(store.clips[3].lq(), expected)
    assert "calendar has 2 frames, the published clip 41" in store.notes[0]


def test_published_frames_of_the_other_degradation_are_used(tmp_path: Path) -> None:
    root = trees.vid4(tmp_path / "Vid4", "BDx4")
    tasks, _ = vid4.recordings(root, degradation="bd")
    assert [task.lq and task.lq.path.parent.name for task in tasks] == ["BDx4"] * 4
    tasks, _ = vid4.recordings(root, degradation="bi")
    assert [task.lq for task in tasks] == [None] * 4


def test_incomplete_vid4(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has none of GT/calendar, GT/city"):
        vid4.recordings(tmp_path)
    root = trees.vid4(tmp_path / "Vid4")
    shutil.rmtree(root / "BIx4" / "city")
    with pytest.raises(UserError, match=r"BIx4 has no clip city, but .*GT has; complete it"):
        vid4.recordings(root)
    shutil.rmtree(root / "GT" / "city")
    tasks, notes = vid4.recordings(root)
    assert [task.clip_id for task in tasks] == ["calendar", "foliage", "walk"]
    assert any("GT has no clip city" in note for note in notes)
