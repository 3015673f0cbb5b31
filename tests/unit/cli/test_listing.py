"""Many runs: chosen, ordered, counted by sweep, printed as JSON, deleted."""

from __future__ import annotations

import json
import os
import re
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedvsr.cli import app, listing
from fedvsr.errors import UserError
from fedvsr.runs.run import locked
from tests.unit.report.synthetic import write_run


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Four runs, and a sweep of three trials of which one failed."""
    score = {"avg": 30.0, "vsr": 31.5, "vrt": 29.0}
    for minutes, (name, best) in enumerate(score.items()):
        write_run(
            tmp_path,
            name,
            algorithm="fedvsr" if name == "vsr" else "fedavg",
            model="vrt" if name == "vrt" else "tiny",
            psnr_db=lambda r, clip, best=best: best,
            minutes=minutes,
        )
    write_run(tmp_path, "cut", clips=(), status="failed", done=0)
    for i in range(3):
        state = "failed" if i == 2 else "finished"
        write_run(tmp_path / "sweeps" / "alpha" / "runs", f"alpha-{i}", status=state)
    (tmp_path / "sweeps" / "alpha" / "sweep.yaml").write_text("name: alpha\n")
    return tmp_path


def listed(results: Path, *options: str) -> str:
    done = CliRunner().invoke(app, ["list", "--out", str(results), *options])
    if done.exception:
        raise done.exception
    return done.stdout


def names(results: Path, *options: str) -> list[str]:
    return [line.split()[0] for line in listed(results, *options).splitlines()[1:]]


def test_a_sweep_is_one_line(results: Path) -> None:
    text = listed(results)
    assert re.search(r"^sweep \S*alpha: 2 finished, 1 failed; `fedvsr tune-report", text, re.M)
    assert "alpha-0" not in text
    assert names(results, "--all").count("alpha-0") == 1
    assert "sweep " not in listed(results, "--all")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--status", "failed", "--all"], {"cut", "alpha-2"}),
        (["--model", "vrt"], {"vrt"}),
        (["--algorithm", "fedvsr"], {"vsr"}),
        (["--algorithm", "fedavg", "--model", "vrt"], {"vrt"}),
    ],
)
def test_runs_are_chosen(options: list[str], expected: set[str], results: Path) -> None:
    assert set(names(results, *options)) == expected


def test_the_best_is_last(results: Path) -> None:
    assert names(results, "--sort", "psnr")[:4] == ["cut", "vrt", "avg", "vsr"]
    assert names(results, "--sort", "gain")[:4] == ["cut", "vrt", "avg", "vsr"]


def test_runs_since_a_date_or_within_an_age(results: Path) -> None:
    # All runs began on 2026-01-01 in UTC.
    assert names(results, "--since", "2025-12-30")
    assert listed(results, "--since", "2026-01-03") == "no run fits\n"
    days = (datetime.now(timezone.utc) - datetime(2026, 1, 1, tzinfo=timezone.utc)) / timedelta(1)
    assert names(results, "--since", f"{int(days) + 2}d")
    assert listed(results, "--since", f"{int(days) - 2}d") == "no run fits\n"


@pytest.mark.parametrize("since", ["yesterday", "3", "3y", "-1d", "2026-13-01"])
def test_what_is_no_date(since: str, results: Path) -> None:
    with pytest.raises(UserError, match=r"write a date, such as .*, or an age"):
        listed(results, f"--since={since}")


def test_json_holds_every_run(results: Path) -> None:
    rows = json.loads(listed(results, "--json"))
    assert len(rows) == 7
    by_name = {row["run_id"]: row for row in rows}
    assert by_name["vsr"]["psnr_db"] == 31.5
    assert by_name["vsr"]["sweep"] is None
    assert by_name["cut"]["psnr_db"] is None
    assert by_name["alpha-1"]["sweep"].endswith("sweeps/alpha")
    assert Path(by_name["vsr"]["folder"]) == results / "vsr"
    assert json.loads(listed(results, "--json", "--status", "running")) == []


def removed(results: Path, *words: str, answer: str = "") -> tuple[int, str]:
    done = CliRunner().invoke(app, ["rm", "--out", str(results), *words], input=answer)
    if isinstance(done.exception, Exception):
        raise done.exception
    return done.exit_code, done.stdout


def test_runs_are_deleted_after_a_yes(results: Path) -> None:
    code, text = removed(results, "avg", "vs", answer="n\n")
    assert code == 1
    assert "delete these runs?" in text
    assert (results / "avg").exists()
    code, text = removed(results, "avg", "vs", answer="y\n")
    assert code == 0
    assert not {"avg", "vsr"} & {path.name for path in results.iterdir()}
    assert (results / "vrt" / "runs.parquet").exists()
    assert removed(results, "vrt", "--yes")[0] == 0


def test_a_run_under_way_is_not_deleted(results: Path) -> None:
    with locked(results / "avg"), pytest.raises(UserError, match="another process is writing"):
        removed(results, "avg", "--yes")
    assert (results / "avg" / "runs.parquet").exists()


def test_a_folder_that_is_half_deleted_is_no_run(
    results: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(_: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(listing.shutil, "rmtree", killed)
    CliRunner().invoke(app, ["rm", "avg", "--yes", "--out", str(results)])
    assert (results / "avg" / "rounds.parquet").exists()
    assert "avg" not in names(results)
    with pytest.raises(UserError, match="there is no run avg"):
        removed(results, "avg", "--yes")


def test_one_unknown_name_deletes_nothing(results: Path) -> None:
    with pytest.raises(UserError, match="there is no run nothing"):
        removed(results, "avg", "nothing", "--yes")
    assert (results / "avg").exists()


def test_a_run_is_reported_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("first", "second"):
        config = write_run(tmp_path / "results", name) / "config.yaml"
        config.touch()
        os.utime(config, (1_700_000_000, 1_700_000_000 + len(name)))
    done = CliRunner().invoke(app, ["report", "latest", "--format", "md"])
    assert done.stdout.splitlines()[-1] == "open results/second/report/report.md"
    done = CliRunner().invoke(app, ["report", "third", "--format", "md"])
    assert "there is no folder third" in str(done.exception)
