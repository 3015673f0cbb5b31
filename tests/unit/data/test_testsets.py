"""Names of test sets."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.data.config import REDS4, DataConfig
from fedvsr.data.testsets import (
    VID4,
    folder_names,
    listed_clips,
    name_clips,
    planned_names,
    recorded_names,
)


def test_only_a_whole_published_set_has_its_name() -> None:
    assert set(name_clips("mine", [*REDS4, *VID4]).values()) == {"REDS4", "Vid4"}
    assert set(name_clips("mine", VID4[:3]).values()) == {"mine"}
    assert name_clips("mine", [*VID4, "extra"])["extra"] == "mine"


def test_folders_with_one_name_are_told_apart() -> None:
    assert folder_names(["/d/a/val", "/d/b/val"]) == ["a-val", "b-val"]
    assert folder_names(["/d/a", "/e/b"]) == ["a", "b"]
    assert folder_names(["sets/Vid4", "sets/held-out"]) == ["sets-Vid4", "sets-held-out"]
    assert folder_names([]) == []


def test_names_that_a_configuration_plans() -> None:
    config = DataConfig(train=["t"], test=["d/vid", "d/gone"], held_out=["000", *REDS4, "more"])
    names = planned_names(config, {"d/vid": VID4, "d/gone": None})
    assert names == ["REDS4", "held-out", "Vid4", "gone"]
    assert planned_names(DataConfig(videos=["v.mp4"]), {}) == ["held-out"]
    assert planned_names(DataConfig(train=["t"], held_out="reds4"), {}) == ["REDS4"]


def test_clips_of_a_folder_that_is_not_read_yet(tmp_path: Path) -> None:
    for name in VID4:
        (tmp_path / "set" / name).mkdir(parents=True)
    clips = listed_clips(tmp_path / "set")
    assert clips is not None
    assert set(clips) == set(VID4)
    assert listed_clips(tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("data", "clips", "expected"),
    [
        ({"videos": ["v.mp4"]}, ["v-3"], {"v-3": "held-out"}),
        ({"held_out": "reds4"}, REDS4, dict.fromkeys(REDS4, "REDS4")),
        ({"held_out": ["000"], "train": ["mine"]}, ["000"], {"000": "held-out"}),
        ({"test": ["/d/mine"]}, ["x", "000"], {"x": "mine", "000": "mine"}),
        (
            {"test": ["/d/vid4_x4", "/d/mine"]},
            [*VID4, "x"],
            {**dict.fromkeys(VID4, "Vid4"), "x": "mine"},
        ),
        ({"test": ["a", "b"], "held_out": ["h"]}, ["h", "x"], {"h": "held-out", "x": "a + b"}),
        ({}, ["x"], {"x": "test"}),
    ],
)
def test_sets_of_older_records(
    data: dict[str, object], clips: list[str], expected: dict[str, str]
) -> None:
    assert recorded_names({"data": data}, clips) == expected
