"""The quick parts of the study: its clips, sweeps, comparisons and power."""

from __future__ import annotations

import json
import re
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from fedvsr.records import load_results
from fedvsr.report.content import read
from fedvsr.report.gather import gather
from fedvsr.report.render import number
from fedvsr.tuning.sweep import expand, load_sweep
from tests.study import power, study
from tests.study.clips import TUNED_ON, lay_out, sort_out
from tests.study.questions import QUESTIONS
from tests.study.running import collect
from tests.unit.report.synthetic import write_run

stats = pytest.importorskip("scipy.stats", reason="needs scipy (extra report)")

CLIPS = Path(__file__).parents[3] / "shared" / "data" / "clips"


def clip(name: str, category: str, motion: float, **more: str) -> dict[str, object]:
    return {"id": name, "file": f"{name}.mp4", "category": category, "motion": motion, **more}


def test_every_second_video_of_a_kind_is_scored(tmp_path: Path) -> None:
    clips = [
        clip("c", "cats", 3), clip("a", "cats", 1), clip("b", "cats", 2), clip("d", "cats", 4),
        clip("lone", "dogs", 9),
        # Two cameras of one scene.
        clip("e", "birds", 1, video="nest"), clip("g", "birds", 9, video="nest"),
        clip("f", "birds", 5),
        clip("vid4_walk", "cats", 0),
    ]  # fmt: skip
    parts = {name: [c["id"] for c in part] for name, part in sort_out(clips).items()}
    assert parts == {"clients": ["e", "g", "a", "c", "lone"], "test": ["f", "b", "d"],
                     "pilot": ["vid4_walk"]}  # fmt: skip
    (tmp_path / "manifest.json").write_text(json.dumps({"clips": clips}))
    for _ in range(2):
        lay_out(tmp_path, tmp_path / "videos")
    links = {str(path.relative_to(tmp_path / "videos")) for path in tmp_path.rglob("*.mp4")}
    assert "test/birds/f.mp4" in links
    assert len(links) == len(clips)


@pytest.mark.skipif(not CLIPS.exists(), reason=f"needs the clips of {CLIPS}")
def test_the_clips_are_those_of_the_design() -> None:
    clips = json.loads((CLIPS / "manifest.json").read_text())["clips"]
    parts = sort_out(clips)
    assert {name: len(part) for name, part in parts.items()} == {
        "clients": 23, "test": 13, "pilot": 6,
    }  # fmt: skip
    assert {c["id"] for c in parts["pilot"]} == set(TUNED_ON)
    assert len({c["id"] for c in chain(*parts.values())}) == len(clips)
    # A client each with `more`.
    assert len({c["category"] for c in parts["clients"]}) == 12


@pytest.mark.parametrize(
    ("name", "trials"),
    [("methods", 84), ("steps", 24), ("failures", 24), ("degradations", 24), ("pilot", 8)],
)
def test_a_sweep_has_one_recipe_and_the_runs_of_its_comment(name: str, trials: int) -> None:
    path = study.SWEEPS / f"{name}.yaml"
    sweep = load_sweep(path)
    runs = expand(sweep)
    comment = re.search(r"# (\d+) runs of (\d+) rounds,", path.read_text())
    assert comment
    assert int(comment[1]) == trials == len(runs)
    assert {run.config.federation.num_rounds for run in runs} == {int(comment[2])}
    assert sweep.executor == "serial"
    assert len({run.config.local.model_dump_json() for run in runs}) == 1
    assert {run.config.federation.clients_per_round for run in runs} == {4}
    assert {run.config.local.steps * run.config.local.batch_size for run in runs} == {80}
    is_pilot = name == "pilot"
    assert {run.config.seed for run in runs} == ({101, 102} if is_pilot else {*range(1, 7)})
    assert {*chain(*(run.config.data.test for run in runs))} == {
        f"stores/{'pilot' if is_pilot else 'test'}"
    }


def fill(tables: Path, name: str, gap: float = 1.0) -> None:
    """Synthetic runs of a question, with differences that the tests choose."""
    lead = {"fedavg": 0.0, "f_hifr": 0.01, "f_gla": -0.2, "fedvsr": 0.3, "fedvsr_published": 0.1}
    of_steps = {"local": {"steps": 20, "batch_size": 4}}, {"local": {"steps": 80, "batch_size": 1}}
    of_loss = (
        {"federation": {"upload_failure_probability": 0.0}},
        {"federation": {"upload_failure_probability": 0.5}},
    )
    variants = {"steps": of_steps, "failures": of_loss}.get(name, ({},))
    bounds = {"centralized": gap, "local": 0.0} if name == "methods" else {}
    for algorithm, value in {**lead, **bounds}.items():
        for place, settings in enumerate(variants):
            for seed in (1, 2, 3):
                # The second variant is 0.5 better, and doubles what a method gains.
                score = 30 + seed + value * (1 + place) + 0.5 * place + 0.001 * seed * (value > 0)
                write_run(
                    tables / name, f"{algorithm}-{place}-{seed}", algorithm=algorithm, seed=seed,
                    partition="more", settings=settings, psnr_db=lambda r, clip, s=score: s,
                )  # fmt: skip


def test_each_question_has_the_runs_that_it_compares(tmp_path: Path) -> None:
    sweeps = tmp_path / "results" / "sweeps"
    methods = sweeps / "methods" / "runs"
    for algorithm in ("fedavg", "f_hifr", "fedvsr_published"):
        for partition in ("more", "dirichlet"):
            write_run(methods, f"{partition}-{algorithm}", algorithm=algorithm, partition=partition)
    write_run(methods, "going", status="running", done=1)
    (methods / "pending").mkdir()
    write_run(sweeps / "steps" / "runs", "steps-fedavg")
    write_run(sweeps / "failures" / "runs", "failures-fedavg")
    federated = ["fedavg", "fedvsr_published"]
    expected = {
        "methods": [f"{p}-{a}" for p in ("dirichlet", "more") for a in ("f_hifr", *federated)],
        "steps": [*(f"{p}-{a}" for p in ("dirichlet", "more") for a in federated), "steps-fedavg"],
        "failures": ["failures-fedavg", *(f"more-{a}" for a in federated)],
    }
    for _ in range(2):
        study.collect_all(tmp_path, tmp_path / "tables")
        assert expected == {
            path.name: load_results(path).runs["run_id"].tolist()
            for path in (tmp_path / "tables").iterdir()
        }, "the sweep of degradations has not been run yet"
        # From now on, these runs come from their tables.
        shutil.rmtree(methods, ignore_errors=True)


def test_tables_keep_runs_that_were_collected_before(tmp_path: Path) -> None:
    runs = tmp_path / "sweeps" / "methods" / "runs"
    write_run(runs, "one")
    write_run(runs, "two", algorithm="fedvsr")
    write_run(runs, "going", status="running", done=1)
    other = write_run(tmp_path / "earlier", "zero", seed=2)
    collect([other], tmp_path / "out")
    for _ in range(2):
        collect(sorted(runs.iterdir()), tmp_path / "out")
    collected, expected = load_results(tmp_path / "out"), load_results(runs)
    assert collected.runs["run_id"].tolist() == ["one", "two", "zero"]
    ours = collected.evaluations[collected.evaluations["run_id"] != "zero"]
    assert len(read(tmp_path / "out").gathered.runs) == 3
    finished = expected.evaluations["run_id"] != "going"
    assert ours["psnr_db"].tolist() == expected.evaluations["psnr_db"][finished].tolist()


def effects_of(name: str, tmp_path: Path) -> dict[tuple[str, str], tuple[float, str]]:
    fill(tmp_path, name)
    (question,) = (q for q in QUESTIONS if q.name == name)
    table = question.compare(gather(load_results(tmp_path / name)))
    return {
        (row["method"], row["reference"]): (round(row["mean"], 2), row["verdict"])
        for row in table.to_dict("records")
    }


def test_methods_are_compared_with_fedavg(tmp_path: Path) -> None:
    assert effects_of("methods", tmp_path) == {
        ("F-HiFr", "FedAvg"): (0.01, "higher, within the bound"),
        ("F-GLA", "FedAvg"): (-0.2, "lower"),
        ("FedVSR", "FedAvg"): (0.3, "higher"),
        ("FedVSR (published)", "FedAvg"): (0.1, "higher"),
    }


def test_the_published_margin_has_two_parts(tmp_path: Path) -> None:
    means = {pair: mean for pair, (mean, _) in effects_of("steps", tmp_path).items()}
    one, four = " (local.batch_size=1, local.steps=80)", " (local.batch_size=4, local.steps=20)"
    margin = means["FedVSR (published)" + one, "FedAvg" + four]
    steps = means["FedAvg" + one, "FedAvg" + four]
    method = means["FedVSR (published)" + one, "FedAvg" + one]
    assert (margin, steps, method) == (0.7, 0.5, 0.2)


def test_shares_are_of_the_margin(tmp_path: Path) -> None:
    fill(tmp_path, "steps")
    (question,) = (q for q in QUESTIONS if q.name == "steps")
    text = "\n".join(study.section(question, read(tmp_path / "steps")))
    # The steps' half decibel, and the method's 0.2, of 0.7.
    assert re.findall(r"(\d+) % \|", text)[:3] == ["100", "71", "29"]
    assert "The margin: FedVSR as published, 80 steps of 1, minus FedAvg" in text


def test_gains_under_failures_are_compared_with_those_without(tmp_path: Path) -> None:
    means = {pair: mean for pair, (mean, _) in effects_of("failures", tmp_path).items()}
    lost = " (federation.upload_failure_probability=0.5)"
    assert means["FedVSR" + lost, "FedAvg" + lost] == 0.6
    assert means["FedVSR's gain at 50 %", "gain at 0 %"] == 0.3
    assert len(means) == 6


def test_the_page_has_tables_and_pictures(tmp_path: Path) -> None:
    fill(tmp_path / "tables", "methods")
    study.write_page(tmp_path / "tables", tmp_path / "page.md", tmp_path / "pictures")
    text = (tmp_path / "page.md").read_text()
    assert "## Does FedVSR help?" in text
    assert f"| F-GLA minus FedAvg | tiny (demo) | more | held-out | {number(-0.2, 3)} dB |" in text
    for name in ("effects-methods", "curves-methods"):
        assert f"(images/study/{name}.png)" in text
        assert (tmp_path / "pictures" / f"{name}.png").exists()
    assert "Centralized minus local training: 1.00 dB (more)." in text
    assert f"| F-GLA minus FedAvg | more | 0.000 dB | {number(-20, 0)} % |" in text
    assert "above FedAvg: 1.00 dB (more)." in text


def test_no_comparison_is_shown_if_the_bounds_are_close(tmp_path: Path) -> None:
    fill(tmp_path / "tables", "methods", gap=0.4)
    with pytest.raises(SystemExit, match=r"0\.40 dB \(more\)\. It must be 0\.5 dB"):
        study.write_page(tmp_path / "tables", tmp_path / "page.md", tmp_path / "pictures")
    assert [path.name for path in tmp_path.iterdir()] == ["tables"]


def test_the_page_is_what_the_tables_say() -> None:
    assert study.PAGE.read_text() == study.page(list(study.read_questions(study.TABLES))), (
        "docs/study.md is out of date; run: python -m tests.study.study page"
    )


def test_pairs_that_are_needed() -> None:
    # A difference of twice the deviation, and of once, at 80 % power: tables of the t test.
    assert (power.num_pairs(0.01, 0.02), power.num_pairs(0.05, 0.05)) == (5, 10)
    assert power.power(0.05, 0.0, 6) == pytest.approx(0.05), "without a difference, the level"


def test_power_of_equivalence_agrees_with_drawing() -> None:
    drawn = np.random.default_rng(0).normal(0, 0.04, size=(40_000, 6))
    limit = stats.t.ppf(0.95, 5) * drawn.std(axis=1, ddof=1) / 6**0.5
    passed = (np.abs(drawn.mean(axis=1)) + limit < 0.05).mean()
    assert power.power_of_equivalence(0.04, 0.05, 6) == pytest.approx(passed, abs=0.01)


def test_the_design_has_the_tables_of_its_pilot() -> None:
    note = (study.ROOT / "docs" / "design" / "0024-study.md").read_text()
    for table in (power.pilot_table(power.PILOT), power.power_table()):
        assert table in note, "docs/design/0024-study.md lacks what tests.study.power prints"
