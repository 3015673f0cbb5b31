"""Runs from Python: started, followed, interrupted, found again and compared."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import fedvsr
from fedvsr.config import load_config
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.unit.cli.test_cli import fedvsr as command


def test_a_run_is_executed_and_shown(
    small_yaml: Path, undisturbed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = list[Event]()
    run = fedvsr.run(small_yaml, executor="serial", out=tmp_path, on_event=events.append)
    assert_equal_runs(undisturbed, run.folder)
    assert run.status == "finished"
    assert (run.id, run.folder.name) == (run.run_id, run.run_id)
    assert isinstance(events[0], RunStarted)
    assert [e.round_idx for e in events if isinstance(e, RoundRecorded)] == [0, 1, 2, 3]
    printed = capsys.readouterr().out
    assert "round 3/3" in printed
    assert run.table("rounds")["round_idx"].tolist() == [0, 1, 2, 3]
    assert run.model()(__import__("torch").zeros(1, 3, 3, 8, 8)).shape == (1, 3, 3, 32, 32)
    axes = run.plot().axes
    assert [a.get_title() for a in axes] == ["Test clips", "Sampled clients"]


def test_settings_are_a_mapping_or_lines(small_yaml: Path, tmp_path: Path) -> None:
    settings = {"federation.num_rounds": 1, "name": "other", "algorithm": {"name": "fedavg"}}
    run = fedvsr.run(small_yaml, settings, executor="serial", out=tmp_path, progress=False)
    lines = ["federation.num_rounds=1", "name=other", "algorithm.name=fedavg"]
    assert run.config == load_config(str(small_yaml), lines)
    with pytest.raises(fedvsr.UserError, match=r"did you mean 'lr'"):
        fedvsr.run(small_yaml, {"local.lrr": 1e-3}, out=tmp_path)
    with pytest.raises(fedvsr.UserError, match="put them into the configuration"):
        fedvsr.run(run.config, {"local.lr": 1e-3}, out=tmp_path)


def test_a_quiet_run_prints_nothing(
    small_yaml: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = {"federation.num_rounds": 1}
    fedvsr.run(small_yaml, one, executor="serial", out=tmp_path, progress=False)
    list(fedvsr.stream(small_yaml, one, executor="serial", out=tmp_path))
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_a_run_that_is_interrupted_is_saved_and_continues(
    error: type[BaseException],
    small_yaml: Path,
    undisturbed: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Wherever the interrupt arrives: here it does in the user's own function."""

    def stop(event: Event) -> None:
        if isinstance(event, RoundRecorded) and event.round_idx == 1:
            raise error

    with pytest.raises(error):
        fedvsr.run(small_yaml, executor="serial", out=tmp_path, on_event=stop, progress=False)
    stopped = fedvsr.load_run(results=tmp_path)
    assert stopped.status == "interrupted"
    if error is KeyboardInterrupt:
        run = fedvsr.run(small_yaml, executor="serial", out=tmp_path, resume=True)
        assert run.id == stopped.id
    else:
        words = ["run", str(small_yaml), "--executor", "serial", "--out", str(tmp_path)]
        assert command(*words, "--resume") == 0
    assert_equal_runs(undisturbed, stopped.folder)
    printed = capsys.readouterr().out
    assert 0 < printed.index("\nround 0/3 ") < printed.index("\nresuming after round 1\n")


def test_a_stream_that_is_left_is_saved_and_continues(
    small_yaml: Path, undisturbed: Path, tmp_path: Path
) -> None:
    for event in fedvsr.stream(small_yaml, executor="serial", out=tmp_path):
        if isinstance(event, RoundRecorded):
            break
    (folder,) = tmp_path.iterdir()
    assert fedvsr.load_run(str(folder)).status == "interrupted"
    list(fedvsr.stream(small_yaml, executor="serial", out=tmp_path, resume=True))
    assert_equal_runs(undisturbed, folder)


def test_a_refused_run_leaves_nothing(small_yaml: Path, tmp_path: Path) -> None:
    settings = {"model.weights": str(tmp_path / "missing.pth")}
    out = tmp_path / "deep" / "results"
    with pytest.raises(fedvsr.UserError, match=r"missing\.pth"):
        fedvsr.run(small_yaml, settings, executor="serial", out=out, progress=False)
    assert not out.parent.exists()


@pytest.fixture
def three_runs(small_yaml: Path, tmp_path: Path) -> list[str]:
    names = ("ab", "ac", "b")
    configs = (load_config(str(small_yaml), [f"name={name}"]) for name in names)
    return [create_run(config, tmp_path).run_id for config in configs]


def test_runs_are_found_by_id_start_folder_and_as_the_latest(
    three_runs: list[str], tmp_path: Path
) -> None:
    for name in (three_runs[0], "ab", str(tmp_path / three_runs[0])):
        assert fedvsr.load_run(name, tmp_path).id == three_runs[0]
    assert fedvsr.load_run(results=tmp_path).id == three_runs[2]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("a", r"a is the start of 2 runs: ab-.*, ac-.*; give more of it"),
        ("cb", r"there is no run cb in .* \(`fedvsr list` shows the existing ones\)"),
    ],
)
def test_a_name_that_is_no_runs_or_several(
    name: str, message: str, three_runs: list[str], tmp_path: Path
) -> None:
    with pytest.raises(fedvsr.UserError, match=message):
        fedvsr.load_run(name, tmp_path)


def test_there_is_no_latest_of_no_runs(tmp_path: Path) -> None:
    with pytest.raises(fedvsr.UserError, match=r"there is no run latest: .* holds none"):
        fedvsr.load_run(results=tmp_path)


def test_a_run_whose_configuration_has_changed_is_refused(
    three_runs: list[str], tmp_path: Path
) -> None:
    path = tmp_path / three_runs[0] / "config.yaml"
    path.write_text(path.read_text().replace("num_rounds: 3", "num_rounds: 4"))
    with pytest.raises(fedvsr.UserError, match=r"config\.yaml is damaged, or was edited by hand"):
        fedvsr.load_run("ab", tmp_path)


def test_a_table_that_does_not_exist(three_runs: list[str], tmp_path: Path) -> None:
    run = fedvsr.load_run(three_runs[0], tmp_path)
    assert run.table("rounds").empty
    with pytest.raises(fedvsr.UserError, match=r"did you mean 'rounds'\? \(there are: runs, "):
        run.table("round")
    with pytest.raises(fedvsr.UserError, match="has no score yet"):
        run.plot()
    with pytest.raises(fedvsr.UserError, match="no checkpoint yet"):
        run.model()


def test_a_video_is_upscaled(undisturbed: Path, video: Path, tmp_path: Path) -> None:
    from fedvsr.data.containers import count_frames

    run = fedvsr.load_run(str(undisturbed))
    path = run.upscale(video, tmp_path / "large.mp4", device="cpu")
    assert path == tmp_path / "large.mp4"
    assert count_frames(path) == count_frames(video)
    with pytest.raises(fedvsr.UserError, match="exists"):
        run.upscale(video, path)


def test_the_package_imports_nothing_heavy() -> None:
    script = (
        "import fedvsr, sys; fedvsr.run; fedvsr.load_run; fedvsr.Run; dir(fedvsr); "
        "print([m for m in ('ray', 'matplotlib', 'pandas', 'IPython') if m in sys.modules])"
    )
    # `fedvsr.run` needs torch; none of the others is loaded before it is used.
    printed = subprocess.check_output([sys.executable, "-c", script], text=True)
    assert printed.strip() == "[]"


PUBLIC = [
    "ExperimentConfig",
    "Results",
    "Run",
    "UserError",
    "load_config",
    "load_results",
    "load_run",
    "run",
    "stream",
    "tune",
]


def test_public_names() -> None:
    """A name that is taken away breaks users' scripts; a new one is there to stay."""
    assert [name for name in fedvsr.__all__ if name != "__version__"] == PUBLIC
    assert all(getattr(fedvsr, name).__doc__ for name in PUBLIC)
    assert not {*PUBLIC} - {*dir(fedvsr)}
    with pytest.raises(AttributeError, match="no attribute 'runn'"):
        _ = fedvsr.runn


def test_a_run_has_labels(three_runs: list[str], tmp_path: Path) -> None:
    run = fedvsr.load_run("b", tmp_path)
    assert (run.tags, run.note) == ((), "")
    run.label("paper", "table-2", note="the reference")
    run.label("old")
    assert fedvsr.load_run("b", tmp_path).tags == ("old", "paper", "table-2")
    assert run.note == "the reference"
