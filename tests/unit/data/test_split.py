from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.clips import Clip
from fedvsr.data.config import REDS4, DataConfig
from fedvsr.data.split import Split, prepare
from fedvsr.data.store import write_manifest
from fedvsr.errors import UserError
from fedvsr.federation.executors import SerialExecutor
from fedvsr.records import load_results
from fedvsr.runs.events import RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import create_run
from fedvsr.settings import presets
from fedvsr.training.config import LocalConfig
from fedvsr.training.requirements import require_room
from tests.conftest import moving_texture, write_video
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.clips import write_store


def data_set(folder: Path, *names: str, scale: int = 4, frames: int = 6, seed: int = 0) -> str:
    textures = {name: moving_texture(frames, 48, 64, seed=seed + i) for i, name in enumerate(names)}
    write_store(folder, textures, scale)
    return str(folder)


def split(*train: str, seed: int = 0, **settings: Any) -> Split:
    config = DataConfig(train=list(train), **{"num_clients": 2, **settings})
    return prepare(config, seed, lambda *_: None)


def names(clips: Any) -> list[str]:
    return [clip.clip_id for clip in clips]


def test_held_out_clips_are_scored_on_and_not_trained_on(tmp_path: Path) -> None:
    every = [f"{i:03d}" for i in range(24)]
    reds = data_set(tmp_path / "reds", *every)
    result = split(reds, held_out="reds4", max_train_clips=10)
    assert tuple(names(result.test)) == REDS4
    assert names(result.train) == [name for name in every if name not in REDS4][:10]
    assert sorted(names(c for own in result.clients for c in own)) == names(result.train)
    other = data_set(tmp_path / "vid4", "walk", "city", seed=100)
    result = split(reds, held_out=["003"], test=[other])
    assert names(result.test) == ["003", "walk", "city"]
    assert len(result.train) == 23
    with pytest.raises(UserError, match=r"names clips that data\.train does not have: 99, zebra"):
        split(reds, held_out=["001", "zebra", "99"])


@pytest.mark.parametrize("same", ["set", "pixels", "ids"])
def test_training_on_test_clips_is_refused(tmp_path: Path, same: str) -> None:
    """Refuse the same store, the same pixels under other names, and other clips of equal names."""
    train = data_set(tmp_path / "train", "a", "b", "c")
    test, names = {
        "set": lambda: (train, ("a", "b", "c")),
        "pixels": lambda: (data_set(tmp_path / "copy", "x", "y", seed=1), ("x", "y")),
        "ids": lambda: (data_set(tmp_path / "more", "b", "z", seed=50), ("b",)),
    }[same]()
    refused = rf"train on {len(names)} of the test clips \({', '.join(names)}\), by their ids or"
    with pytest.raises(UserError, match=refused):
        split(train, test=[test])
    result = split(train, test=[test], allow_overlap=True)
    assert result.overlap == names


def test_two_clips_of_one_id_are_refused(tmp_path: Path) -> None:
    one, other = (data_set(tmp_path / name, "a", "b", seed=i) for i, name in enumerate("xy"))
    third = data_set(tmp_path / "third", "c", "d", seed=9)
    with pytest.raises(UserError, match=r"two clips a to train on, in .*/x and .*/y; rename the"):
        split(one, other, test=[third])
    with pytest.raises(UserError, match=r"two clips a to score on, in .*/x and .*/y; rename the"):
        split(third, test=[one, other])


def test_by_folder_makes_one_client_per_folder(tmp_path: Path) -> None:
    own = data_set(tmp_path / "own", "v10-0", "v2-0", "v2-1", "v1-0", "v1-1", "v1-2")
    for seed in (0, 1):
        result = split(own, held_out=["v1-2"], partition="by_folder", num_clients=3, seed=seed)
        dealt = [names(client) for client in result.clients]
        assert dealt == [["v1-0", "v1-1"], ["v2-0", "v2-1"], ["v10-0"]]
    with pytest.raises(UserError, match=r"each of the 3 folders .* set data\.num_clients = 3"):
        split(own, held_out=["v1-2"], partition="by_folder", num_clients=2)


def test_every_record_says_that_test_clips_were_trained_on(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    train = data_set(tmp_path / "train", "cat-0", "cat-1", "dog-0", "dog-1")
    data = DataConfig(
        train=[train], test=[train], num_clients=2, partition="more", allow_overlap=True
    )
    config = ExperimentConfig.model_validate(
        small.model_dump()
        | {"data": data.model_dump(), "federation": {"num_rounds": 1, "clients_per_round": 2}}
    )
    run = create_run(config, tmp_path / "out")
    events = execute(run, prepare_data(config, lambda *_: None), SerialExecutor)
    started = next(events)
    assert isinstance(started, RunStarted)
    assert any("train on 4 of the test clips" in note for note in started.notes)
    list(events)
    for name, table in vars(load_results(run.folder)).items():
        assert (table["num_overlap"] == 4).all(), name
        assert len(table) > 0 or name == "faults", name
    partition = load_results(run.folder).partition
    assert partition.groupby("client_id")["label"].unique().map(list).tolist() in (
        [["cat"], ["dog"]],
        [["dog"], ["cat"]],
    )
    assert set(partition["clip_id"]) == {"cat-0", "cat-1", "dog-0", "dog-1"}


def test_unusable_data_sets_are_refused(tmp_path: Path) -> None:
    twos = data_set(tmp_path / "twos", "a", "b", scale=2)
    with pytest.raises(UserError, match=r"was prepared with --scale 2, and data\.scale = 4"):
        split(twos, held_out=["a"])
    with pytest.raises(UserError, match=r"there is no data set .*nowhere \(data\.test\)"):
        split(data_set(tmp_path / "ok", "a", "b", "c"), test=[str(tmp_path / "nowhere")])
    with pytest.raises(ValidationError, match=r"data\.train needs clips to score on"):
        DataConfig(train=["reds"])
    with pytest.raises(UserError, match="only 2 training clips"):
        split(str(tmp_path / "ok"), held_out=["a"], num_clients=3)


def test_a_folder_of_videos_is_cut_at_the_first_run(tmp_path: Path) -> None:
    for label in ("cat", "dog"):
        (tmp_path / "own" / label).mkdir(parents=True)
        frames = moving_texture(9, 48, 64, seed=len(label) + ord(label[0]))
        write_video(tmp_path / "own" / label / "a.mp4", frames)
    steps = list[tuple[str, int, int]]()
    settings = {"clip_frames": 3, "num_clients": 2, "cache_dir": str(tmp_path / "cache")}
    config = DataConfig(
        train=[str(tmp_path / "own")], held_out=["cat-a-000"], partition="more", **settings
    )
    result = prepare(config, 0, lambda *step: steps.append(step))
    assert [len(own) for own in result.clients] in ([2, 3], [3, 2])
    assert {clip.label for clip in result.train} == {"cat", "dog"}
    assert steps[-1] == ("own (not prepared; this takes a while, once)", 18, 18)
    again = prepare(config, 0, lambda *step: pytest.fail("cut again"))
    assert again == result


def test_dealing_many_clips_makes_objects_of_few(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver pays for the clips of its round and for those that it scores on, not for all."""
    num_clips, made = 30_000, list[str]()
    shape = {"num_frames": 9, "height": 32, "width": 48, "scale": 4}
    entries = [
        {"clip_id": f"v{i // 100}-{i % 100:03d}", "label": f"l{i % 7}", "sha256": f"{i:064x}"}
        | shape
        for i in range(num_clips)
    ]
    write_manifest(tmp_path, entries, "video", "bi", {})
    init = Clip.__init__

    def counted(self: Clip, *values: Any, **fields: Any) -> None:
        init(self, *values, **fields)
        made.append(self.clip_id)

    monkeypatch.setattr(Clip, "__init__", counted)
    result = split(
        *(str(tmp_path),),
        **{"held_out": ["v200-050", "v7*-001"], "gap_clips": 2, "num_clients": 29_000},
    )
    assert len(result.test) == 1 + 11, "v7 and v70 to v79"
    assert len(result.train) == num_clips - 12 - 4 - 11 * 3
    assert len(result.same_video) == 12
    # The samples' room is looked at too, and a client's clips are asked for.
    require_room(result.train, LocalConfig(num_frames=3, crop=32))
    assert [clip.clip_id for clip in result.clients[15_000]] == [made[-1]]
    assert len(made) < 100


def test_a_clip_too_short_for_samples_is_named(small: ExperimentConfig, tmp_path: Path) -> None:
    train = data_set(tmp_path / "train", "a", "b", "c", frames=2)
    data = DataConfig(train=[train], held_out=["a"], num_clients=2)
    federation = {"num_rounds": 1, "clients_per_round": 2}
    config = ExperimentConfig.model_validate(
        small.model_dump() | {"data": data.model_dump(), "federation": federation}
    )
    with pytest.raises(UserError, match=r"local\.num_frames = 3 is more than clip b has \(2\)"):
        prepare_data(config, lambda *_: None)


def test_the_seed_decides_who_holds_what(tmp_path: Path) -> None:
    train = data_set(tmp_path / "train", *[f"{i:02d}" for i in range(9)])
    dealt = [
        [names(own) for own in split(train, held_out=["08"], seed=seed).clients]
        for seed in (1, 1, 2)
    ]
    assert dealt[0] == dealt[1] != dealt[2]
    np.testing.assert_array_equal(list(map(len, dealt[0])), [4, 4])


def test_whole_videos_and_patterns_are_held_out(tmp_path: Path) -> None:
    ids = ("alice-a-000", "alice-a-001", "alice-b-000", "bob-[c]-000", "bob-d-000", "bob-d-001")
    train = data_set(tmp_path / "own", *ids)
    for entry, expected in (
        ("alice-a", ["alice-a-000", "alice-a-001"]),
        ("alice-*", ["alice-a-000", "alice-a-001", "alice-b-000"]),
        ("*-001", ["alice-a-001", "bob-d-001"]),
        ("bob-[c]-000", ["bob-[c]-000"]),
        ("bob-[c]", ["bob-[c]-000"]),
        ("alice-a-000", ["alice-a-000"]),
    ):
        result = split(train, held_out=[entry])
        assert names(result.test) == expected, entry
        assert set(names(result.train)) == {*ids} - {*expected}, entry
    with pytest.raises(UserError, match=r"does not have: alise-a; did you mean 'alice-a'\?$"):
        split(train, held_out=["alise-a", "bob-d"])


def test_clips_next_to_held_out_ones_are_left_out(tmp_path: Path) -> None:
    ids = [f"{video}-{i:03d}" for video in "ab" for i in range(6)]
    train = data_set(tmp_path / "own", *ids)
    result = split(train, held_out=["a-005"], gap_clips=2)
    assert names(result.train) == [clip for clip in ids if clip not in ("a-003", "a-004", "a-005")]
    assert names(result.test) == list(result.same_video) == ["a-005"]
    # On both sides, and in the same video only.
    result = split(train, held_out=["a-002"], gap_clips=1)
    assert names(result.train)[:3] == ["a-000", "a-004", "a-005"]
    assert len(result.train) == 9
    assert split(train, held_out=["a"], gap_clips=9).same_video == ()
    with pytest.raises(UserError, match=r"data\.gap_clips = 6 leaves no clip to train on"):
        split(train, held_out=["a-003", "b-003"], gap_clips=6)


def test_the_end_of_a_video_is_kept_apart(tmp_path: Path) -> None:
    path = tmp_path / "v.mp4"
    write_video(path, moving_texture(18, 32, 32))
    config = DataConfig(
        videos=[str(path)],
        clip_frames=3,
        gap_clips=2,
        test_clips_per_video=2,
        num_clients=2,
        cache_dir=str(tmp_path / "c"),
    )
    result = prepare(config, 0, lambda *_: None)
    assert names(result.train) == ["v-000", "v-001"]
    assert names(result.test) == list(result.same_video) == ["v-004", "v-005"]


def test_recordings_that_are_not_cut_share_no_video(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / "own").mkdir(exist_ok=True)
        write_video(tmp_path / "own" / f"v-00{i}.mp4", moving_texture(4, 32, 32, seed=i))
    store = tmp_path / "store"
    command = ("data", "prepare", "folder", "--source", str(tmp_path / "own"))
    assert fedvsr(*command, "--out", str(store)) == 0
    result = split(str(store), held_out=["v-002"], gap_clips=1)
    assert names(result.train) == ["v-000", "v-001"], "its neighbours in name are other videos"
    assert result.same_video == ()


def test_a_run_says_that_its_test_clips_share_a_video_with_training(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    run = create_run(small, tmp_path / "out")
    events = execute(run, prepare_data(small, lambda *_: None), SerialExecutor)
    started = next(events)
    assert isinstance(started, RunStarted)
    assert any(
        note.startswith("1 of 1 test clips are parts of videos that clients train on")
        for note in started.notes
    )
    events.close()
    assert load_results(run.folder).runs["num_same_video"].tolist() == [1]


def test_presets_keep_the_ends_of_videos_apart() -> None:
    for name in presets():
        config = load_config(name, ["data.videos=[a.mp4]"])
        assert config.data.gap_clips == 1, name
