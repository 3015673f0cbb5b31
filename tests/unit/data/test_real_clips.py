"""Data sets made of real clips; skipped if the clips are missing."""

from __future__ import annotations

import itertools
import json
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from fedvsr.data.clips import Frames
from fedvsr.data.degrade import bicubic_upscale, quantise
from fedvsr.data.frames import open_clip
from fedvsr.data.prepare import prepare
from fedvsr.data.request import Request
from fedvsr.data.sources import folder, kinetics, reds, vid4
from fedvsr.metrics.fidelity import psnr
from tests.unit.data.clips import write_pictures
from tests.unit.data.trees import reduced

CLIPS = Path(__file__).parents[4] / "shared" / "data" / "clips"
pytestmark = pytest.mark.skipif(not CLIPS.is_dir(), reason=f"there are no real clips at {CLIPS}")


def first_frames(name: str, count: int) -> Frames:
    with closing(open_clip(CLIPS / f"{name}.mp4").frames()) as frames:
        return np.stack([rgb for rgb, _ in itertools.islice(frames, count)])


def test_vid4_and_reds(tmp_path: Path) -> None:
    calendar, walk = (first_frames(f"vid4_{name}", 2) for name in ("calendar", "walk"))
    for name, frames in (("calendar", calendar), ("walk", walk)):
        write_pictures(tmp_path / "Vid4" / "GT" / name, frames, "{:08d}.png")
        write_pictures(tmp_path / "Vid4" / "BIx4" / name, reduced(frames), "{:08d}.png")
    store = prepare(Request(tmp_path / "v", "vid4", 4, "bi"), *vid4.recordings(tmp_path / "Vid4"))
    assert [(clip.clip_id, clip.width) for clip in store.clips] == [
        ("calendar", calendar.shape[2]), ("walk", walk.shape[2]),
    ]  # fmt: skip
    (tmp_path / "Vid4" / "GT").rename(tmp_path / "train_sharp")
    for number, name in (("000", "calendar"), ("011", "walk")):
        (tmp_path / "train_sharp" / name).rename(tmp_path / "train_sharp" / number)
    again = prepare(
        Request(tmp_path / "r", "reds", 4, "bi"), *reds.recordings(tmp_path, num_frames=2)
    )
    # Equal frames have equal checksums in both stores, and the low-resolution frames that are made
    # equal the published ones.
    assert [clip.sha256 for clip in again.clips] == [clip.sha256 for clip in store.clips]
    assert list(again.lq_sha256.values()) == list(store.lq_sha256.values())
    # Published bicubic scores of Vid4's calendar are about 20 dB.
    sr = quantise(bicubic_upscale(store.clips[0].lq()[0] / np.float32(255)))
    assert 18 < psnr(sr, calendar[0]) < 22


def test_kinetics_and_folder(tmp_path: Path) -> None:
    manifest = json.loads((CLIPS / "manifest.json").read_text())["clips"]
    walkers = [clip for clip in manifest if (clip["width"], clip["height"]) == (848, 480)][:4]
    lines = ["label,youtube_id,time_start,time_end,split"]
    for clip in walkers:
        path = tmp_path / "videos" / "walking" / f"{clip['id']}_000000_000010.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(CLIPS / clip["file"])
        lines.append(f"walking,{clip['id']},0,10,val")
    table = tmp_path / "val.csv"
    table.write_text("\n".join(lines))
    choice = kinetics.Choice(("walking",), 2, 3, 480, 848)
    request = Request(tmp_path / "k", "kinetics", 4, "bi", choice.settings())
    store = kinetics.prepare(request, tmp_path / "videos", table, choice)
    assert len(store.clips) == 2
    for clip in store.clips:
        name = clip.clip_id.removesuffix("_000000_000010")
        np.testing.assert_array_equal(clip.gt(), first_frames(name, 3))
    tasks, _ = folder.recordings(tmp_path / "videos", clip_frames=10)
    promised = {clip["id"]: clip["frames"] for clip in walkers}
    assert {t.gt.path.stem[:-14]: t.num_frames for t in tasks} == promised
    assert {task.label for task in tasks} == {"walking"}
