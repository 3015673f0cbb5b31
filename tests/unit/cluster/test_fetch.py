"""The record of a job's run, and what a fetch may write on this machine."""

from __future__ import annotations

import hashlib
import io
import json
import stat
import zipfile
from datetime import datetime, timedelta, timezone
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.cluster import archive, fetch, jobs
from fedvsr.errors import UserError
from fedvsr.labels import add_tags, read_labels
from fedvsr.runs import launch
from fedvsr.schemas import SCHEMAS
from tests.unit.cli.test_cli import fedvsr

JOB = "demo-20260101-000000-abcd"
START = datetime(2026, 1, 1, tzinfo=timezone.utc)


def make_run(folder: Path, files: dict[str, str], **row: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("name: demo\n")
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text)
    row = {
        "run_id": folder.name,
        "config_hash": "c",
        "started_at": START,
        "updated_at": START,
    } | row
    table = pa.Table.from_pylist([row], schema=SCHEMAS["runs"])
    pq.write_table(table, folder / "runs.parquet")
    return folder


def zip_of(entries: dict[str, bytes], mode: int = stat.S_IFREG | 0o644) -> io.BytesIO:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as zipped:
        for name, data in entries.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = mode << 16
            zipped.writestr(info, data)
    return file


def contents(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".parquet"
    }


class Head:
    """Stands in for a cluster: it runs the sender here, on `out`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path, job_id: str = JOB) -> None:
        self.jobs = jobs.Jobs.__new__(jobs.Jobs)
        self.jobs.address = "http://head"
        self.jobs._client = SimpleNamespace(delete_job=lambda _: None)  # type: ignore[assignment]
        job = jobs.Job(job_id, "SUCCEEDED", None, None, "", 0, str(out))
        self.checkpoints = False

        def lines(_: str) -> Any:
            return archive.lines(out, job_id, self.checkpoints)

        for name, stand_in in {
            "get": lambda _: job,
            "submit": lambda *_: "sender",
            "stop": lambda _: job,
            "logs": lambda _: "run folder: /\nrun folder: /x/mine\n",
            "_lines": lines,
        }.items():
            monkeypatch.setattr(self.jobs, name, stand_in)

    def fetch(self, out: Path, checkpoints: bool = False) -> Path:
        self.checkpoints = checkpoints
        return self.jobs.fetch(JOB, out, checkpoints, "python")[0]


@pytest.fixture
def head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Head:
    out = tmp_path / "cluster"
    files = {"checkpoints/round-1": "state 1", "frames/a": "a"}
    make_run(out / "run-1", files)
    monkeypatch.setenv("FEDVSR_JOB", JOB)
    fetch.record_folder(out, "run-1")
    return Head(monkeypatch, out)


def test_a_run_is_recorded_under_its_jobs_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FEDVSR_JOB", raising=False)
    fetch.record_folder(tmp_path, "run-1")
    assert list(tmp_path.iterdir()) == [], "outside a job nothing is recorded"
    monkeypatch.setenv("FEDVSR_JOB", JOB)
    fetch.record_folder(tmp_path, "run-1")
    (path,) = (tmp_path / ".jobs").iterdir()
    assert path.name == f"{JOB}.json"
    digest = hashlib.sha256(b"run-1").hexdigest()
    assert json.loads(path.read_text()) == {"folder": "run-1", "sha256": digest}
    fetch.forget_folder(tmp_path)
    assert not path.exists()
    for job_id in ("", "..", "a/b", ".a"):
        monkeypatch.setenv("FEDVSR_JOB", job_id)
        with pytest.raises(UserError, match="is not a job's id"):
            fetch.record_folder(tmp_path, "run-1")


def test_what_a_client_prints_names_no_run(head: Head, tmp_path: Path) -> None:
    mine = make_run(tmp_path / "here" / "mine", {"model.safetensors": "precious"})
    before = contents(mine)
    assert head.fetch(tmp_path / "here") == tmp_path / "here" / "run-1"
    assert contents(mine) == before


def test_a_fetch_keeps_what_it_does_not_bring(head: Head, tmp_path: Path) -> None:
    here = tmp_path / "here"
    copy = head.fetch(here, checkpoints=True)
    assert contents(copy)["checkpoints/round-1"] == "state 1"
    (copy / "notes.txt").write_text("mine")
    remote = tmp_path / "cluster" / "run-1"
    (remote / "frames" / "a").write_text("a of a later round")
    (remote / "checkpoints" / "round-2").write_text("state 2")
    assert head.fetch(here) == copy
    assert contents(copy) == {
        "config.yaml": "name: demo\n",
        "frames/a": "a of a later round",
        "checkpoints/round-1": "state 1",
        "notes.txt": "mine",
    }
    assert [path.name for path in here.iterdir()] == ["run-1"], "no temporary files are left"


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"started_at": START + timedelta(microseconds=1)}, "holds another run than the job's"),
        ({"run_id": "run-0"}, "holds another run than the job's"),
        ({"updated_at": START + timedelta(seconds=1)}, "it was resumed here"),
    ],
)
def test_another_run_or_a_newer_one_is_not_replaced(
    row: dict[str, Any], message: str, head: Head, tmp_path: Path
) -> None:
    copy = make_run(tmp_path / "here" / "run-1", {"model.safetensors": "precious"}, **row)
    before = contents(copy)
    with pytest.raises(UserError, match=message):
        head.fetch(tmp_path / "here")
    assert contents(copy) == before


def test_a_run_without_results_is_compared_by_its_configuration(head: Head, tmp_path: Path) -> None:
    copy = head.fetch(tmp_path / "here")
    (copy / "runs.parquet").unlink()
    assert head.fetch(tmp_path / "here") == copy
    (copy / "runs.parquet").unlink()
    (copy / "config.yaml").write_text("name: other\n")
    with pytest.raises(UserError, match="holds another run"):
        head.fetch(tmp_path / "here")


def test_a_folder_that_is_no_run_or_a_link_is_not_replaced(head: Head, tmp_path: Path) -> None:
    here = tmp_path / "here"
    (here / "run-1").mkdir(parents=True)
    (here / "run-1" / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="exists and is not a run's folder"):
        head.fetch(here)
    assert (here / "run-1" / "thesis.tex").read_text() == "precious"
    elsewhere = make_run(tmp_path / "elsewhere" / "run-1", {})
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "run-1").symlink_to(elsewhere)
    with pytest.raises(UserError, match="exists and is not a run's folder"):
        head.fetch(linked)
    assert (linked / "run-1").is_symlink()


@pytest.mark.parametrize("run_id", ["", ".", "..", ".hidden", "/", "a/b", "../x", "a\\b"])
def test_a_head_cannot_name_a_folder_outside(run_id: str, tmp_path: Path) -> None:
    here = tmp_path / "here"
    make_run(here / "mine", {})
    with pytest.raises(UserError, match="is not the folder of a run or sweep"):
        fetch.unpack(zip_of({"config.yaml": b""}), run_id, here)
    assert [path.name for path in here.iterdir()] == ["mine"]
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("name", ["/tmp/x", "../x", "a/../../x", "a//b", "./x", "a\\x", ".lock"])
def test_an_archive_cannot_write_outside_its_folder(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a file of such a folder"):
        fetch.unpack(zip_of({"config.yaml": b"", name: b"x"}), "run-1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_archive_with_a_link_or_without_a_run_is_refused(tmp_path: Path) -> None:
    link = zip_of({"config.yaml": b"/etc/passwd"}, mode=stat.S_IFLNK | 0o777)
    with pytest.raises(UserError, match="is not a file of such a folder"):
        fetch.unpack(link, "run-1", tmp_path)
    with pytest.raises(UserError, match=r"no config\.yaml"):
        fetch.unpack(zip_of({"ok.txt": b"y"}), "run-1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_job_without_a_run_says_so(head: Head, tmp_path: Path) -> None:
    fetch.forget_folder(tmp_path / "cluster")
    with pytest.raises(UserError, match=f"{JOB} is SUCCEEDED and has begun nothing in .*cluster; "):
        head.fetch(tmp_path / "here")


def test_a_job_that_is_no_experiment_has_nothing_to_fetch(
    head: Head, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doctor = jobs.Job("doctor-1", "SUCCEEDED", None, None, "", 0, None)
    monkeypatch.setattr(head.jobs, "get", lambda _: doctor)
    with pytest.raises(UserError, match="is not the job of a run or sweep"):
        head.fetch(tmp_path / "here")


def test_a_run_that_the_cluster_refuses_leaves_no_record(
    small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    records = list[list[str]]()

    def refuse(*_: object) -> None:
        records.append([path.name for path in (tmp_path / ".jobs").iterdir()])
        raise UserError("the cluster has no GPU")

    monkeypatch.setattr(launch, "prepare_data", lambda *_: None)
    monkeypatch.setattr(launch, "launch", refuse)
    monkeypatch.setenv("FEDVSR_JOB", JOB)
    assert fedvsr("run", str(small_yaml), "--out", str(tmp_path)) == 2
    assert records == [[f"{JOB}.json"]], "recorded before the run starts"
    assert [path.name for path in tmp_path.rglob("*")] == [".jobs"]


def test_a_job_whose_run_would_be_hidden_is_refused() -> None:
    with pytest.raises(UserError, match=r"name = \.x: a job's name must not begin with a dot"):
        jobs.new_id(".x")


def make_sweep(folder: Path, text: str = "name: grid\n") -> Path:
    folder.mkdir(parents=True)
    (folder / "sweep.yaml").write_text(text)
    make_run(folder / "runs" / "run-1", {"checkpoints/round-1": "state 1"})
    for name in ("tune/state.pkl", "report/report.html"):
        (folder / name).parent.mkdir()
        (folder / name).write_text(name)
    return folder


def test_a_sweep_is_fetched_without_the_state_of_ray_tune(head: Head, tmp_path: Path) -> None:
    make_sweep(tmp_path / "cluster" / "sweeps" / "grid")
    fetch.record_folder(tmp_path / "cluster", "sweeps/grid")
    here = tmp_path / "here"
    copy = head.fetch(here)
    assert copy == here / "sweeps" / "grid"
    files = {
        "sweep.yaml": "name: grid\n",
        "runs/run-1/config.yaml": "name: demo\n",
        "report/report.html": "report/report.html",
    }
    assert contents(copy) == files
    assert contents(head.fetch(here, checkpoints=True)) == files | {
        "runs/run-1/checkpoints/round-1": "state 1"
    }


@pytest.mark.parametrize(
    ("text", "also", "message"),
    [
        ("name: other\n", "", "holds another sweep than the job's"),
        ("name: grid\n", "tune", "holds a sweep that was run here"),
    ],
)
def test_a_sweep_of_this_machine_is_not_replaced(
    head: Head, tmp_path: Path, text: str, also: str, message: str
) -> None:
    make_sweep(tmp_path / "cluster" / "sweeps" / "grid")
    fetch.record_folder(tmp_path / "cluster", "sweeps/grid")
    mine = tmp_path / "here" / "sweeps" / "grid"
    (mine / also).mkdir(parents=True)
    (mine / "sweep.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        head.fetch(tmp_path / "here")
    assert contents(mine) == {"sweep.yaml": text}


def test_a_fetch_keeps_the_labels_given_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    far, here = tmp_path / "far", tmp_path / "here"
    run = make_run(far / "run-1", {})
    monkeypatch.setenv(fetch.JOB_VARIABLE, JOB)
    fetch.record_folder(far, "run-1")
    add_tags(run, ["far"])
    here.mkdir()
    head = Head(monkeypatch, far)
    assert read_labels(head.fetch(here)).tags == ("far",)
    add_tags(here / "run-1", ["here"])
    add_tags(run, ["new"])
    assert read_labels(head.fetch(here)).tags == ("far", "here")
