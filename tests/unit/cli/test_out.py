"""Folders that cannot be written, refused runs that leave nothing, results one may only read."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.data.request import Request, existing
from fedvsr.errors import UserError
from fedvsr.files import require_folder
from fedvsr.runs.run import locked, run_status
from tests.unit.cli.test_cli import fedvsr
from tests.unit.report.synthetic import write_run


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("file", "is not a folder; choose another place"),
        ("file/below", "is not a folder; choose another place"),
        ("link", "is not a folder; choose another place"),
        ("x" * 300, "the name is too long"),
        ("new/" + "x" * 300, "the name is too long"),
        ("x/" * 3000, "the name is too long"),
    ],
    ids=lambda text: text[:20],
)
def test_a_folder_that_cannot_be_made_is_refused_before_anything_is_done(
    out: str,
    message: str,
    small_yaml: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("x")
    Path("link").symlink_to("nowhere")
    write_run(tmp_path / "results", "one")
    sweep = tmp_path / "sweep.yaml"
    sweep.write_text(f"name: s\nbase: {small_yaml}\nspace: {{local.lr: {{grid: [0.001]}}}}\n")
    before = sorted(tmp_path.rglob("*"))
    for command in (
        ["run", str(small_yaml), "--executor", "serial"],
        ["tune", str(sweep)],
        ["report", "results", "--format", "csv"],
    ):
        assert fedvsr(*command, "--out", out) == 2
        err = capsys.readouterr().err
        assert err.startswith("error: --out ")
        assert message in err
        assert err.count("\n") == 1
        assert len(err) < 400
    with pytest.raises(UserError):
        existing(Request(Path(out), "folder", 4, "bi"))
    for command in (["list"], ["show", "one"], ["watch", "one"], ["tune-report", "one"]):
        assert fedvsr(*command, "--out", out) == 2
        assert capsys.readouterr().err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_folder_that_can_be_made_is_accepted(tmp_path: Path) -> None:
    require_folder(tmp_path)
    require_folder(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("above", [False, True])
def test_a_run_or_sweep_that_is_refused_leaves_no_folder(
    above: bool, small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a" / "results"
    if above:
        out.mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    sweep = tmp_path / "sweep.yaml"
    command = ["run", str(small_yaml), "--executor", "serial", "--out", str(out)]
    weights = f"model.weights={tmp_path}/missing.pth"
    assert fedvsr(*command, "--set", weights) == 2
    assert fedvsr(*command, "--set", "data.videos=[missing.mp4]") == 2
    assert sorted(tmp_path.rglob("*")) == before
    sweep.write_text(
        f"name: s\nbase: {small_yaml}\nspace: {{local.lr: {{grid: [0.001]}}}}\n"
        "set: {data.videos: [missing.mp4]}\n"
    )
    assert fedvsr("tune", str(sweep), "--out", str(out)) == 2
    assert "there is no video" in capsys.readouterr().err
    sweep.unlink()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_runs_status_is_read_without_writing(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "one", status="running", done=1)
    before = sorted(folder.iterdir())
    assert run_status(folder) == "stopped"
    assert sorted(folder.iterdir()) == before, "no .lock is made"
    with locked(folder):
        (folder / ".lock").chmod(0o444)
        assert run_status(folder) == "running"
    assert run_status(folder) == "stopped"
