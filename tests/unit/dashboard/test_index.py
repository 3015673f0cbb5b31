"""The list of runs: what it says of each, and how often it reads tables for that."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.dashboard import index as module
from fedvsr.dashboard.index import Index
from tests.unit.report.synthetic import write_run


def damage(path: Path) -> None:
    """Cut a file off, as a full disk does."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The folders of which a table is read, a line a read."""
    made = list[str]()

    def counting(function: Callable[..., Any]) -> Callable[..., Any]:
        def read(folder: Path, *names: str) -> Any:
            made.append(folder.name)
            return function(folder, *names)

        return read

    for name in ("last_evaluations", "read_runs"):
        monkeypatch.setattr(module, name, counting(getattr(module, name)))
    return made


def test_a_line_says_what_the_tables_say(tmp_path: Path) -> None:
    write_run(tmp_path, "new", algorithm="fedvsr", model="vrt", done=1, status="failed")
    sweep = tmp_path / "sweep"
    write_run(sweep / "runs", "trial")
    (sweep / "sweep.yaml").touch()
    (tmp_path / "notes").mkdir()
    collected = tmp_path / "collected"
    collected.mkdir()
    rows = [pq.read_table(path) for path in tmp_path.rglob("runs.parquet")]
    pq.write_table(pa.concat_tables(rows), collected / "runs.parquet")
    lines = {line["id"]: line for line in Index(tmp_path).lines()}
    assert set(lines) == {"new", "sweep/runs/trial"}
    new, trial = lines["new"], lines["sweep/runs/trial"]
    assert (new["status"], new["model"], new["algorithm"]) == ("failed", "vrt", "fedvsr")
    assert (new["last_round"], new["num_rounds"], new["psnr_db"]) == (1, 2, 31.0)
    assert (new["gain_db"], new["test_set"], new["sweep"]) == (2.0, "held-out", None)
    assert (trial["sweep"], trial["last_round"]) == ("sweep", 2)


def test_a_damaged_run_is_a_line_of_its_own(tmp_path: Path) -> None:
    write_run(tmp_path, "whole")
    damage(write_run(tmp_path, "broken") / "rounds.parquet")
    lines = {line["id"]: line for line in Index(tmp_path).lines()}
    assert lines["whole"]["status"] == "finished"
    assert lines["broken"]["status"] == "damaged"
    assert lines["broken"]["error"].startswith("rounds.parquet is damaged")


def test_many_runs_are_read_once_and_then_only_what_changes(
    tmp_path: Path, reads: list[str]
) -> None:
    template = write_run(tmp_path, "run-000")
    for i in range(1, 40):
        shutil.copytree(template, tmp_path / f"run-{i:03}")
    index = Index(tmp_path, budget_s=60)
    assert len(index.lines()) == 40
    assert len(reads) == 80, "the run's row, and its rounds with their scores"
    reads.clear()
    assert len(index.lines()) == 40
    assert reads == []
    assert index.folder("run-020") == tmp_path / "run-020"
    assert reads == []
    os.utime(tmp_path / "run-012" / "rounds.parquet")
    index.lines()
    assert reads == ["run-012"] * 2
    shutil.rmtree(tmp_path / "run-012")
    assert len(index.lines()) == 39
    assert index.folder("run-012") is None


def test_a_first_answer_does_not_wait_for_all_tables(tmp_path: Path, reads: list[str]) -> None:
    for name in ("a", "b", "c"):
        write_run(tmp_path, name)
    index = Index(tmp_path, budget_s=0)
    assert {line["status"] for line in index.lines()} == {"reading"}
    assert reads == []
    assert index.folder("a") == tmp_path / "a", "its page can be opened already"
    index = Index(tmp_path, budget_s=60)
    assert {line["status"] for line in index.lines()} == {"finished"}


@pytest.mark.parametrize("run_id", ["..", "../secret", "/etc", "", ".", "run/../run", "run/", "\0"])
def test_only_the_id_of_a_run_names_a_folder(tmp_path: Path, run_id: str) -> None:
    results = tmp_path / "results"
    write_run(results, "run")
    write_run(tmp_path, "secret")
    (results / "link").symlink_to(tmp_path / "secret")
    index = Index(results)
    assert index.folder(run_id) is None
    assert index.folder("link") is None
    assert index.folder("run") == results / "run"


def test_a_run_that_writes_nothing_any_more_is_called_stopped(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", status="running", done=1)
    index = Index(tmp_path)
    assert index.lines()[0]["status"] == "running"
    long_ago = time.time() - 3600
    for path in (*folder.glob("*.parquet"), folder):
        os.utime(path, (long_ago, long_ago))
    assert index.lines()[0]["status"] == "stopped"


def test_a_run_begins_when_its_folder_is_made(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    folder.mkdir()
    (folder / "config.yaml").touch()
    index = Index(tmp_path)
    assert [line["status"] for line in index.lines()] == ["starting"]
    long_ago = time.time() - 3600
    os.utime(folder, (long_ago, long_ago))
    assert index.lines() == [], "a folder with a configuration alone is no run"
