"""Different test sets never share a heading."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedvsr import load_results
from fedvsr.data.config import REDS4
from fedvsr.data.testsets import VID4
from fedvsr.report import tables
from fedvsr.report.gather import gather
from fedvsr.report.testsets import label_testsets
from tests.unit.report.synthetic import write_run


def evaluations(
    run_id: str,
    clips: Sequence[str] = ("a", "b"),
    frames: int = 3,
    bicubic_db: float = 29.0,
    test_set: str = "held-out",
) -> pd.DataFrame:
    rows = [
        {"run_id": run_id, "round_idx": r, "clip_id": clip, "num_frames": frames,
         "bicubic_psnr_db": bicubic_db, "test_set": test_set}
        for r in (0, 1) for clip in clips
    ]  # fmt: skip
    return pd.DataFrame(rows)


VIDEOS: dict[str, Any] = {"data": {"videos": ["v.mp4"]}}
PLAIN = evaluations("one"), VIDEOS


@pytest.mark.parametrize(
    ("other", "settings", "names"),
    [
        (evaluations("two"), VIDEOS, ["held-out", "held-out"]),
        (evaluations("two", bicubic_db=29.001), VIDEOS, ["held-out", "held-out"]),
        (evaluations("two", frames=1), VIDEOS, ["held-out (3 frames)", "held-out (1 frame)"]),
        (evaluations("two", ["a"]), VIDEOS, ["held-out (2 clips)", "held-out (1 clip)"]),
        (evaluations("two", ["a", "c"]), VIDEOS, ["held-out (set A)", "held-out (set B)"]),
        (evaluations("two", bicubic_db=31), VIDEOS, ["held-out (set A)", "held-out (set B)"]),
        (
            evaluations("two", bicubic_db=31),
            {**VIDEOS, "evaluation": {"crop": 256}},
            ["held-out", "held-out (256-pixel crop)"],
        ),
        (
            evaluations("two"),
            {"data": {"videos": ["v.mp4"], "scale": 2}},
            ["held-out (x4)", "held-out (x2)"],
        ),
        (evaluations("two", test_set="mine"), {}, ["held-out", "mine"]),
    ],
)
def test_two_runs_share_a_name_only_if_they_score_the_same_frames(
    other: pd.DataFrame, settings: dict[str, Any], names: list[str]
) -> None:
    both = pd.concat([PLAIN[0], other])
    labels, notes = label_testsets(both, {"one": VIDEOS, "two": settings})
    assert [labels["one", "a"], labels["two", "a"]] == names
    assert len(notes) == (2 if "set A" in names[0] else 0)


def test_letters_are_explained() -> None:
    both = pd.concat([PLAIN[0], evaluations("two", ["a", "c"], bicubic_db=30.5)])
    _, notes = label_testsets(both, {"one": VIDEOS, "two": VIDEOS})
    assert notes == (
        "held-out (set A): 2 clips (a, b), bicubic 29.00 dB",
        "held-out (set B): 2 clips (a, c), bicubic 30.50 dB",
    )


def test_part_of_a_published_set_is_not_compared_with_the_paper(tmp_path: Path) -> None:
    data = {"videos": [], "train": ["reds"], "held_out": "reds4", "test": ["sets/Vid4"]}
    settings = {"whole": {}, "crop": {"crop": 256}, "few": {"max_frames": 5}}
    for i, (name, evaluation) in enumerate(settings.items()):
        write_run(
            tmp_path, name, model="vrt", size="paper", seed=i, clips=[*REDS4, *VID4],
            data=data, settings={"evaluation": evaluation},
        )  # fmt: skip
    cells = tables.main_table(gather(load_results(tmp_path)))
    cells = cells[(cells["method"] == "FedAvg") & (cells["metric"] == "psnr_db")]
    assert dict(zip(cells["testset"], cells["paper"].notna(), strict=True)) == {
        "REDS4": True, "REDS4 (256-pixel crop)": False, "REDS4 (first 5 frames)": False,
        "Vid4": True, "Vid4 (256-pixel crop)": False, "Vid4 (first 5 frames)": False,
    }  # fmt: skip
    assert (cells["num_seeds"] == 1).all()
    assert (cells["state"] == "").all()
