"""The quick parts of the small study, and its page."""

from __future__ import annotations

import json
import re
from itertools import chain
from pathlib import Path

import pytest

from fedvsr.records import load_results
from fedvsr.report.content import read
from fedvsr.tuning.sweep import expand, load_sweep
from tests.study import small
from tests.unit.report.synthetic import write_run


@pytest.mark.parametrize(("name", "trials"), [("pretrain", 3), ("methods", 36), ("ablation", 6)])
def test_a_sweep_expands_to_what_its_comment_says(name: str, trials: int) -> None:
    path = small.SWEEPS / f"{name}.yaml"
    sweep = load_sweep(path)
    comment = re.search(r"# (\d+) runs of (\d+) rounds?,", path.read_text())
    assert comment
    assert int(comment[1]) == trials == len(expand(sweep))
    assert {t.config.federation.num_rounds for t in expand(sweep)} == {int(comment[2])}
    assert sweep.executor == "serial"


def test_no_clip_is_in_two_parts(tmp_path: Path) -> None:
    names = [*small.TEST, *(f"other_{i}" for i in range(9))]
    clips = [{"id": n, "file": f"{n}.mp4", "category": n.split("_")[0]} for n in names]
    (tmp_path / "manifest.json").write_text(json.dumps({"clips": clips}))
    for name in names:
        (tmp_path / f"{name}.mp4").touch()
    for _ in range(2):
        small.lay_out(tmp_path, tmp_path / "videos")
    parts = {
        part.name: sorted(path.stem for path in part.glob("*/*.mp4"))
        for part in (tmp_path / "videos").iterdir()
    }
    assert parts["test"] == sorted(small.TEST)
    assert parts["public"] == ["other_0", "other_3", "other_6"]
    assert sorted(chain(*parts.values())) == sorted(names)
    assert (tmp_path / "videos" / "test" / "davis" / "davis_cows.mp4").exists()


def test_finished_runs_are_collected(tmp_path: Path) -> None:
    runs = tmp_path / "sweeps" / "methods-1" / "runs"
    write_run(runs, "one")
    write_run(runs, "two", algorithm="fedvsr")
    write_run(runs, "going", status="running", done=1)
    other = write_run(tmp_path / "methods-2", "zero", seed=2)
    small.collect([other], tmp_path / "out")
    for _ in range(2):
        small.collect(sorted(runs.iterdir()), tmp_path / "out")
    collected, expected = load_results(tmp_path / "out"), load_results(runs)
    assert collected.runs["run_id"].tolist() == ["one", "two", "zero"]
    ours = collected.evaluations[collected.evaluations["run_id"] != "zero"]
    assert len(read(tmp_path / "out").gathered.runs) == 3
    finished = expected.evaluations["run_id"] != "going"
    assert ours["psnr_db"].tolist() == expected.evaluations["psnr_db"][finished].tolist()


def test_the_page_is_what_the_tables_say() -> None:
    assert small.PAGE.read_text() == small.page(read(small.TABLES)), (
        "docs/study-small.md is out of date; run: python -m tests.study.small page"
    )
