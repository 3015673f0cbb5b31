"""A sweep's plug-ins: named by their files, kept, and the same from the first trial to the last."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr.errors import UserError
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.runner import opened
from fedvsr.tuning.sweep import expand, load_sweep, saved_sweep
from tests.unit.test_plugins import forget, write

SWEEP = """
name: own
base: base.yaml
space:
  algorithm.name: {grid: [fedavg, ./mean.py, ./sub/other.py]}
  size: {cases: {small: {model.channels: 4}, large: {model: {channels: 8}}}}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    write(tmp_path, "mean", "as it began")
    write(tmp_path / "sub", "other")
    write(tmp_path, "third")
    (tmp_path / "base.yaml").write_text("extends: demo\nalgorithm: {name: ./third.py}\n")
    (tmp_path / "own.yaml").write_text(SWEEP)
    return tmp_path / "own.yaml"


def hashes(sweep: SweepConfig) -> list[str]:
    return [trial.config.config_hash() for trial in expand(sweep)]


def test_trials_use_the_files_as_they_were_when_the_sweep_began(file: Path) -> None:
    sweep, folder = load_sweep(file), file.parent / "results"
    labels = [trial.label for trial in expand(sweep)]
    assert labels[2:4] == ["name=mean.py size=small", "name=mean.py size=large"]
    assert len(set(hashes(sweep))) == 6
    with opened(sweep, folder, resume=False):
        pass
    for name in ("mean", "other", "third"):
        assert (folder / "plugins" / "algorithm" / f"{name}.py").is_file()
    # A trial on another node, after the file was edited there.
    write(file.parent, "mean", "edited")
    forget("mean")
    assert hashes(saved_sweep(folder / "sweep.yaml")) == hashes(sweep)
    with pytest.raises(UserError) as refused, opened(load_sweep(file), folder, resume=True):
        pass
    assert str(refused.value).startswith(f"{file.parent}/mean.py has changed since the sweep ")
    write(file.parent, "mean", "as it began")
    with opened(load_sweep(file), folder, resume=True):
        pass


def test_the_file_of_the_base_is_pinned_too(file: Path) -> None:
    file.write_text("name: own\nbase: base.yaml\nspace: {seed: {grid: [1, 2]}}\n")
    sweep = load_sweep(file)
    assert [*sweep.plugins] == ["algorithm/third.py"]
    before = hashes(sweep)
    with opened(sweep, file.parent / "results", resume=False):
        write(file.parent, "third", "edited")
        forget("third")
        assert hashes(saved_sweep(file.parent / "results" / "sweep.yaml")) == before


def test_files_of_one_name_are_refused(file: Path) -> None:
    write(file.parent / "sub", "mean", "another")
    file.write_text(SWEEP.replace("sub/other", "sub/mean"))
    with pytest.raises(UserError, match=r"/mean.py and .*/sub/mean.py have one name"):
        load_sweep(file)


def test_a_file_may_be_given_for_all_trials(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file.write_text("name: own\nbase: demo\nspace: {seed: {grid: [1, 2]}}\n")
    monkeypatch.chdir(file.parent / "sub")
    sweep = load_sweep(file, ["algorithm.name=other.py"])
    assert {trial.config.algorithm.name for trial in expand(sweep)} == {"other"}


def test_a_saved_sweep_executes_nothing(file: Path) -> None:
    mark = file.parent / "executed"
    with opened(load_sweep(file), file.parent / "results", resume=False):
        kept = file.parent / "results" / "plugins" / "algorithm" / "mean.py"
        kept.write_text(f"open({str(mark)!r}, 'w').close()\n")
        forget("mean")
        sweep = saved_sweep(file.parent / "results" / "sweep.yaml")
        assert not mark.exists()
        with pytest.raises(UserError, match=r"mean.py: it has changed since"):
            expand(sweep)
    assert not mark.exists()
