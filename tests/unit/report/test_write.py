from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from fedvsr.report import write
from fedvsr.report.content import read
from fedvsr.report.prose import markdown
from tests.conftest import moving_texture
from tests.unit.cli.test_cli import fedvsr
from tests.unit.report.synthetic import write_frames, write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    gt = moving_texture(1, 64, 96)[0]
    row = {"round_idx": 1, "client_id": 0, "num_steps": 2, "loss": 0.1, "train_s": 1.0}
    for algorithm in ("fedavg", "fedvsr", "f_ala"):
        for seed in (1, 2):
            folder = write_run(
                tmp_path / "results", f"{algorithm}-{seed}", algorithm=algorithm, seed=seed,
                clients=[row], psnr_db=lambda r, clip, s=seed, a=algorithm: 30 + 0.1 * s * len(a),
            )  # fmt: skip
            write_frames(folder, "a", gt // 2 + 10 * seed, gt)
    return tmp_path / "results"


def test_a_report_in_every_format(results: Path, capsys: pytest.CaptureFixture[str]) -> None:
    formats = ["--format", "md,csv,tex,html,png,pdf"]
    assert fedvsr("report", str(results), *formats, "--clients") == 0
    out = results / "report"
    *printed, last = capsys.readouterr().out.splitlines()
    assert last == f"open {out}/report.html"
    assert sorted(printed) == sorted(str(path) for path in out.iterdir())
    names = {path.name for path in out.iterdir()}
    assert {
        "report.md", "report.html", "table1.csv", "table1.tex", "table2.csv", "differences.csv",
        "margins.csv", "overhead.csv", "faults.csv", "curves-tiny-demo.png", "curves-tiny-demo.pdf",
        "crops-tiny-demo-less-held-out.png", "clients-tiny-demo-less-fedvsr.pdf",
    } <= names  # fmt: skip
    text = (out / "report.md").read_text()
    assert "| tiny (demo) | FedVSR | **30.90 ± 0.42** |" in text
    pictures = {line[line.index("(") + 1 : -1] for line in text.splitlines() if line[:2] == "!["}
    assert pictures == {name for name in names if name.endswith(".png")}
    table = pd.read_csv(out / "table1.csv")
    assert len(table) == 3 * 2, "bicubic, FedAvg and FedVSR by two metrics"
    # Equal results give equal files.
    again = results.parent / "again"
    assert fedvsr("report", str(results), "--format", "csv,html,png", "--out", str(again)) == 0
    for path in again.iterdir():
        assert path.read_bytes() == (out / path.name).read_bytes(), path.name
    assert not list(again.glob("clients-*")), "clients are drawn on request"


def test_a_report_of_one_run_with_a_chosen_crop(results: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--out", str(out), "--format", "png", "--crop", "8,8,40", "--clip", "a"]
    assert fedvsr("report", str(results / "fedvsr-1"), *arguments) == 0
    assert {path.name.split("-")[0] for path in out.iterdir()} == {"curves", "crops"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--format", "docx"], "--format 'docx': docx is not a format"),
        (["--format", ","], "nothing is not a format"),
        (["--crop", "1,2"], "--crop '1,2' is not X,Y,SIZE"),
        (["--crop", "1,2,500", "--format", "png"], "leaves the frame of a"),
        (["--clip", "nosuch"], "no finished run has a picture of clip nosuch; choose from: a"),
    ],
)
def test_mistakes_cost_one_line(
    results: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fedvsr("report", str(results), *arguments) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_trials_of_sweeps_are_left_out_unless_their_sweep_is_asked_for(
    results: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = results / "sweeps" / "mine"
    for i in range(3):
        write_run(sweep / "runs", f"trial-{i}", algorithm="fedprox", settings={"local": {"lr": i}})
    (sweep / "sweep.yaml").write_text("name: mine\n")
    report = read(results)
    assert "fedprox" not in set(report.gathered.runs["algorithm"])
    assert report.notes == (
        f"the trials of the sweep {sweep} are left out; `fedvsr tune-report {sweep}` shows them",
    )
    assert len(read(sweep).gathered.runs) == 3
    assert fedvsr("report", str(results / "sweeps")) == 2
    assert "holds only trials of sweeps; `fedvsr tune-report" in capsys.readouterr().err


def test_a_damaged_run_is_left_out_of_the_report(
    results: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    bad = results / "fedavg-2"
    path = bad / "evaluations.parquet"
    path.write_bytes(path.read_bytes()[:99])
    assert fedvsr("report", str(results), "--format", "csv") == 0
    table = pd.read_csv(results / "report" / "table1.csv")
    assert set(table[table["algorithm"] == "fedavg"]["num_seeds"]) == {1}
    assert f"skipped {bad}: evaluations.parquet is damaged" in caplog.text
    assert fedvsr("report", str(bad)) == 2
    assert capsys.readouterr().err.startswith(f"error: {path} is damaged")


def test_without_scipy_only_differences_are_left_out(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvsr.report.content.find_spec", lambda name: None)
    text = markdown(read(results), [])
    assert "paired differences are left out because scipy is missing" in text
    assert "## Paired differences" not in text
    assert "## Scores" in text


def test_the_command_line_imports_no_heavy_library() -> None:
    import subprocess

    code = (
        "import sys, fedvsr.cli; sys.exit(bool({'torch', 'ray', 'matplotlib'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_formats_are_those_of_the_command() -> None:
    assert set(write.DEFAULT_FORMATS) < set(write.FORMATS)


def test_runs_of_parts_of_fedvsr_alone_have_the_ablations_table(tmp_path: Path) -> None:
    for algorithm in ("f_hifr", "f_gla"):
        write_run(tmp_path, algorithm, algorithm=algorithm)
    out = tmp_path / "report"
    formats = ["--format", "md,csv,tex,html"]
    assert fedvsr("report", str(tmp_path), *formats) == 0
    assert {p.name for p in out.glob("table*")} == {"table2.csv", "table2.tex"}
    headings = [line for line in (out / "report.md").read_text().splitlines() if line[:2] == "##"]
    assert headings[0] == "## Ablation", "no empty table of scores"
    page = (out / "report.html").read_text()
    assert "F-HiFr" in page
    assert 'class="skip" href="#ablation"' in page
