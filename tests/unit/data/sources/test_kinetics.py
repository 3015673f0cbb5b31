from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvsr.data import prepare as preparation
from fedvsr.data.clips import Clip, checksum
from fedvsr.data.request import Request
from fedvsr.data.sources import kinetics
from fedvsr.data.sources.kinetics import Choice
from fedvsr.data.store import Store
from fedvsr.errors import UserError
from tests.unit.data import trees
from tests.unit.data.clips import write_clip

SMALL: dict[str, Any] = {
    "classes": ("yoga", "archery"),
    "clips_per_class": 2,
    "num_frames": 4,
    "height": trees.HEIGHT,
    "width": trees.WIDTH,
}


def made(out: Path, root: Path, table: Path, workers: int = 2, **changes: Any) -> Store:
    choice = Choice(**SMALL | changes)
    request = Request(out, "kinetics", 4, "bi", choice.settings(), kinetics.PICKS)
    return kinetics.prepare(request, root, table, choice, workers)


def names(store: Store) -> list[str]:
    return [clip.clip_id for clip in store.clips]


def test_the_papers_classes() -> None:
    assert len(kinetics.CLASSES) == len(set(kinetics.CLASSES)) == 40
    choice = Choice()
    assert (choice.width, choice.height, choice.num_frames) == (1280, 720, 100)
    assert choice.clips_per_class * len(choice.classes) == 240


def test_a_few_clips_of_each_class(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", ("archery", "yoga", "marching"))
    store = made(tmp_path / "a", root, table)
    assert [clip.label for clip in store.clips] == ["yoga"] * 2 + ["archery"] * 2
    assert {clip.num_frames for clip in store.clips} == {4}
    assert store.rejected == ()
    clip = store.clips[0]
    index = int(clip.clip_id.split("_")[1])
    error = clip.gt().astype(int) - trees.texture(trees.hash_of("yoga") + index, 4)
    assert np.abs(error).mean() < 12, "the clip shows the video of its name"


def test_the_choice_depends_on_the_seed_alone(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=6)
    chosen = {seed: names(made(tmp_path / f"{seed}", root, table, seed=seed)) for seed in range(4)}
    assert len({tuple(c) for c in chosen.values()}) > 1
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]))
    again = made(tmp_path / "again", root, table, workers=1)
    assert names(again) == chosen[0]
    other = made(tmp_path / "other", root, table, classes=("archery", "yoga"))
    assert names(other) == chosen[0][2:] + chosen[0][:2]
    three = made(tmp_path / "three", root, table, clips_per_class=3)
    assert names(three)[:2] == chosen[0][:2]


def test_videos_that_cannot_be_used_are_replaced(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", ("yoga",), videos=7)
    choice = Choice(**SMALL | {"classes": ("yoga",)})
    order = kinetics.candidates(root, table, choice)["yoga"]
    paths = [candidate.path for candidate in order]
    missing, corrupt, short, other_size, truncated = (path for path in paths[:5] if path)
    missing.unlink()
    corrupt.write_bytes(b"no video")
    short.unlink()
    write_clip(short, trees.texture(0, 3))
    other_size.unlink()
    write_clip(other_size, trees.texture(0, 4, 16, 28))
    truncated.unlink()
    write_clip(truncated, trees.texture(0, 30), options={"movflags": "faststart"})
    truncated.write_bytes(truncated.read_bytes()[:2600])
    store = made(tmp_path / "out", root, table, classes=("yoga",), num_frames=4)
    assert names(store) == [candidate.clip_id for candidate in order[5:7]]
    assert [row["video"] for row in store.rejected] == [c.clip_id for c in order[:5]]
    assert {row["label"] for row in store.rejected} == {"yoga"}
    reasons = [row["reason"] for row in store.rejected]
    assert reasons[:1] + reasons[2:4] == ["is missing", "has 3 frames", "is 28 x 16"]
    assert reasons[1].startswith("is not a readable video")
    assert reasons[4].startswith(("is damaged after", "is not a readable video", "is truncated"))


def test_rows_can_be_taken_as_the_table_lists_them(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", ("yoga", "archery"), videos=6)
    head, *rows = table.read_text().splitlines()
    table.write_text("\n".join([head, *reversed(rows)]))
    listed = {
        label: [r for r in reversed(rows) if r.startswith(label)] for label in ("yoga", "archery")
    }
    store = made(tmp_path / "out", root, table, order="table", seed=5)
    youtube_ids = [row.split(",")[1] for own in listed.values() for row in own[:2]]
    assert [name.rsplit("_", 2)[0] for name in names(store)] == youtube_ids
    assert "order" not in Choice().settings(), "a store of an earlier version stays the same"


def test_videos_can_be_required_to_be_long(tmp_path: Path) -> None:
    # 4 frames at 25 per second, but for three videos.
    root, table = trees.kinetics(tmp_path / "k", ("yoga",), videos=5)
    order = kinetics.candidates(root, table, Choice(**SMALL | {"classes": ("yoga",)}))["yoga"]
    for candidate in order[1:4]:
        assert candidate.path is not None
        candidate.path.unlink()
        write_clip(candidate.path, trees.texture(0, 100))
    store = made(tmp_path / "out", root, table, classes=("yoga",), min_seconds=4)
    assert names(store) == [candidate.clip_id for candidate in order[1:3]]
    assert [row["reason"] for row in store.rejected] == ["is 0.16 s long"]


def test_too_few_names_the_classes(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=3)
    with pytest.raises(UserError, match=r"too few videos in .* in 2 of 2 classes: yoga \(3 of 4\)"):
        made(tmp_path / "out", root, table, clips_per_class=4)
    for path in sorted((root / "train" / "archery").iterdir())[:2]:
        path.write_bytes(b"no video")
    with pytest.raises(
        UserError,
        match=r"too few usable videos of 24 x 16 in 1 of 2 classes: archery \(1 of 2\); add",
    ):
        made(tmp_path / "out", root, table)
    assert not (tmp_path / "out").exists()
    write_clip(path, trees.texture(0, 4))
    assert len(made(tmp_path / "out", root, table).clips) == 4, "it resumes"


def test_another_choice_reuses_finished_clips(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=3)
    for path in sorted((root / "train" / "archery").iterdir())[:2]:
        path.write_bytes(b"no video")
    with pytest.raises(UserError, match=r"archery \(1 of 2\)"):
        made(tmp_path / "out", root, table)
    with pytest.raises(UserError, match=r"unfinished store with .* \(num_frames 4, not"):
        made(tmp_path / "out", root, table, num_frames=3)
    monkeypatch.setattr(preparation, "write_clip", lambda *_: pytest.fail("made again"))
    store = made(tmp_path / "out", root, table, clips_per_class=1)
    assert [clip.label for clip in store.clips] == ["yoga", "archery"]
    assert len(list((tmp_path / "out").glob("*.npy"))) == 4
    assert {clip.sha256 for clip in store.clips} == {checksum(clip.gt()) for clip in store.clips}


def test_rows_may_be_chosen_by_split_and_rate(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=2)
    text = table.read_text().replace("_0,0,10,train", "_0,0,10,test")
    table.write_text(text)
    with pytest.raises(UserError, match=r"yoga \(1 of 2\), archery \(1 of 2\)"):
        made(tmp_path / "out", root, table, split="train")
    with pytest.raises(UserError, match=r"usable videos of 24 x 16 in 2 of 2 classes"):
        made(tmp_path / "out", root, table, fps=30)
    assert made(tmp_path / "out", root, table, fps=25, clips_per_class=1).clips


def test_a_video_of_two_classes_is_used_once(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=3)
    yoga = [row for row in table.read_text().splitlines() if row.startswith("yoga")]
    with table.open("a") as file:
        file.writelines(row.replace("yoga", "archery", 1) + "\n" for row in yoga)
    clips: tuple[Clip, ...] = made(tmp_path / "out", root, table, clips_per_class=3).clips
    assert len({clip.clip_id for clip in clips}) == 6
    assert all(("yog" in clip.clip_id) == (clip.label == "yoga") for clip in clips)


def test_tables_that_are_not_kinetics(tmp_path: Path) -> None:
    root, table = trees.kinetics(tmp_path / "k", videos=1)

    def refused(match: str, **changes: Any) -> None:
        with pytest.raises(UserError, match=match):
            kinetics.candidates(root, table, Choice(**SMALL | changes))

    refused(r"train\.csv has no class yogga; did you mean 'yoga'", classes=("yogga",))
    table.write_text("youtube_id,label,time_start,time_end,split\n../x,yoga,0,10,train\n")
    refused(r"line 2: '../x' is not a video id")
    table.write_text("youtube_id,label,time_start,time_end,split\nx,yoga,soon,10,train\n")
    refused(r"line 2: could not convert string to float: 'soon'")
    table.write_text("name,class\nx,yoga\n")
    refused("is not Kinetics' table with the columns label")
    table.unlink()
    refused(r"cannot read .*train\.csv: No such file")
