"""`fedvsr reproduce` from data sets as they are published, only tiny, to the report of a job."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch

from fedvsr.models._flow import SpyNet
from fedvsr.models.spec import RELEASED_FLOW
from tests.golden import recipe
from tests.integration.head import local_head
from tests.unit.data import trees

pytestmark = [pytest.mark.ray, pytest.mark.full, pytest.mark.timeout(900)]
SHAPE = (4, 128, 128)
CLASSES = ("archery", "marching", "sailing", "yoga")
# What the tiny data sets have otherwise than the published ones.
TINY = {
    "reds": ["--frames", "4"],
    "vid4": [],
    "kinetics": ["--frames", "4", "--size", "128x128", "--clips-per-class", "2"]
    + [word for name in CLASSES for word in ("--class", name)],
}


def run(*words: str, code: int = 0, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-m", "fedvsr", *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=800)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def test_from_published_data_sets_to_the_report(tmp_path: Path) -> None:
    sources = {
        "REDS": trees.reds(
            tmp_path / "REDS", (0, 1, 2, 3, 11, 15, 20, 21), (), with_lq=False, shape=SHAPE
        ),
        "VID4": trees.vid4(tmp_path / "Vid4", None, shape=SHAPE),
        "KINETICS": trees.kinetics(tmp_path / "k400", CLASSES, 2, SHAPE)[0],
    }
    data, out = tmp_path / "stores", tmp_path / "results"
    short = ["federation.num_rounds=1", "local.steps=1", "evaluation.every_rounds=1"]
    # A process for each client would take two seconds of a processor to start.
    short += ["cluster.isolation=slot", "federation.clients_per_round=1"]
    words = ["reproduce", "confounds", "--data", str(data), "--size", "demo"]
    words += [word for setting in short for word in ("--set", setting)]
    there = tmp_path / "cluster"

    # The command says what makes what is missing; that is then done.
    printed = run(*words, code=2).splitlines()
    missing = [line.removeprefix("missing: ") for line in printed if line.startswith("missing")]
    assert [Path(path).name for path in missing] == [
        "reds", "vid4", "kinetics", "reds4", RELEASED_FLOW
    ]  # fmt: skip
    for line in printed:
        if line.startswith("  fedvsr data prepare "):
            for name, folder in sources.items():
                line = line.replace(f"{name}/", f"{folder}/").replace(f"{name} ", f"{folder} ")
            prepare = shlex.split(line)[1:]
            run(*prepare, *TINY[prepare[2]])
    flow = SpyNet()
    recipe.fill(flow)
    torch.save({"params": dict(flow.named_parameters())}, data / RELEASED_FLOW)

    with local_head() as head:
        submit = [*words, "--out", str(there), "--submit", head.address]
        lines = run(*submit, environment=head.environment).splitlines()
        follow, fetch = (shlex.split(line)[1:] for line in lines[-2:])
        printed = run(*follow, environment=head.environment).splitlines()
        run(*fetch, "--out", str(out), environment=head.environment)
    folder = out / "sweeps" / "confounds-demo"
    assert f"open {there}/sweeps/confounds-demo/report/report.html" in printed
    assert not (folder / "tune").exists(), "Ray Tune's state is of use on the cluster only"
    trials = pd.read_parquet(folder / "trials.parquet")
    assert trials["status"].tolist() == ["finished"] * 8
    assert "optical flow starts from scratch" not in "\n".join(printed)
    table = pd.read_csv(folder / "report" / "table1.csv")
    assert {*zip(table["heterogeneity"], table["testset"], strict=True)} == {
        ("less", "REDS4"), ("less", "Vid4"), ("more", "REDS4"), ("more", "Vid4")
    }  # fmt: skip
    assert table["mean"].notna().all()
    files = {path.name for path in (folder / "report").iterdir()}
    assert {"report.html", "report.md", "table1.csv", "table1.tex"} <= files
    # One run, whose method no setting tells from another, stands beside the paper's FedAvg.
    for paper in ("preprint", "published"):
        one = folder / "runs" / trials["run_id"].iloc[0]
        run("report", str(one), "--format", "tex,csv", "--paper", paper)
        of_paper = pd.read_csv(one / "report" / "table1.csv").dropna(subset="paper")
        assert set(of_paper["method"]) == {"FedAvg"}
        values = of_paper.set_index(["testset", "metric"])["paper"]
        assert values["REDS4", "psnr_db"] == 29.71
        assert "[29.71" in (one / "report" / "table1.tex").read_text()
