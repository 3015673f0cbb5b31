"""What a resumed sweep knows of its trials, read from their runs."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from fedvsr.errors import FileError
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.past import Asha, Median, Past, ResumedSearcher, read_past
from fedvsr.tuning.runner import _limit, _reason, _to_start
from fedvsr.tuning.sweep import expand
from fedvsr.tuning.table import STOPPED_EARLY, Note, newest_runs, row_of
from tests.unit.tuning.test_progress import as_running


def sweep_of(base: Path, **settings: Any) -> SweepConfig:
    space = {"local.lr": {"grid": [0.1, 0.2, 0.3, 0.4]}}
    fixed = {"name": "s", "base": str(base), "space": space}
    return SweepConfig.model_validate(
        {**fixed, "constraints": {"algorithm.mu": "local.lr / 2"}, **settings}
    )


@pytest.fixture
def sweep(small_yaml: Path) -> SweepConfig:
    return sweep_of(small_yaml)


def place(run: Path, target: Path, note: Note, finished: bool = True) -> Path:
    """A trial's run: it has finished, or its process has died."""
    shutil.copytree(run, target)
    note.write(target)
    if not finished:
        as_running(target)
    return target


def test_finished_and_stopped_trials_are_not_started_again(
    sweep: SweepConfig, undisturbed: Path, tmp_path: Path
) -> None:
    trials = expand(sweep)
    for i, trial in enumerate(trials[:3]):
        note = Note(dict(trial.values), 1, f"old-{i}")
        note = replace(note, ended=STOPPED_EARLY if i == 1 else "")
        place(undisturbed, tmp_path / trial.run_id, note, finished=i == 0)
    past = read_past(sweep, tmp_path)
    assert {trial.trial_id: trial.is_over for trial in past} == {
        trials[0].run_id: True,
        trials[1].run_id: True,
        trials[2].run_id: False,
    }
    (first,) = (trial for trial in past if trial.trial_id == trials[0].run_id)
    assert first.values == {"local.lr": 0.1}
    assert [result["round_idx"] for result in first.results] == [0, 1, 2, 3]
    assert first.results[-1]["test/held-out/psnr_db"] == first.results[-1]["psnr_db"]
    points, num_new = _to_start(sweep, trials, past, tmp_path)
    assert points == [{"trial": 2, "local.lr": 0.3}, {"trial": 3, "local.lr": 0.4}]
    assert num_new == 0
    stopped = trials[1]
    row = row_of("s", 1, stopped.values, 3, tmp_path / stopped.run_id)
    assert row["status"] == STOPPED_EARLY
    # A searcher proposes what it was asked for, minus what has started.
    searched = sweep_of(Path(sweep.base), searcher={"name": "optuna", "num_samples": 5})
    assert _to_start(searched, None, past, tmp_path) == ([{"local.lr": 0.3}], 2)


def test_a_population_continues_with_its_newest_settings(
    small_yaml: Path, undisturbed: Path, tmp_path: Path
) -> None:
    sweep = sweep_of(small_yaml, scheduler={"name": "pbt"}, constraints={})
    first = Note({"local.lr": 0.2}, 1, "new-id", member="old-id")
    place(undisturbed, tmp_path / "first", first, finished=False)
    forked = Note({"local.lr": 0.25}, 1, "newer-id", "other", 2, member="old-id")
    place(undisturbed, tmp_path / "forked", forked, finished=False)
    assert list(newest_runs(tmp_path).values()) == [tmp_path / "forked"]
    points, _ = _to_start(sweep, expand(sweep), read_past(sweep, tmp_path), tmp_path)
    assert points == [
        {"trial": 0, "resumes": "forked", "local.lr": 0.25},
        *({"trial": i, "resumes": "", "local.lr": lr} for i, lr in ((0, 0.1), (2, 0.3), (3, 0.4))),
    ]


def trial(name: str) -> Any:
    return SimpleNamespace(trial_id=name)


def result(round_idx: int, psnr_db: float) -> dict[str, Any]:
    return {"round_idx": round_idx, "psnr_db": psnr_db}


@pytest.mark.parametrize("kind", [Asha, Median])
def test_schedulers_stop_a_trial_that_is_behind_earlier_ones(kind: Any) -> None:
    settings = {"grace_period": 1, "time_attr": "round_idx"}
    if kind is Asha:
        settings["reduction_factor"] = 2
    past = [Past(f"run-{i}", {}, True, [result(r, 30.0 + i) for r in (1, 2)]) for i in range(4)]
    actions = list[str]()
    for known in ([], past):
        scheduler = kind(**settings)
        scheduler.set_search_properties("psnr_db", "max")
        scheduler.past = known
        controller = SimpleNamespace(get_live_trials=list)
        # Hashable, as Tune's trials are.
        late = Past("late", {}, False, [])
        scheduler.on_trial_add(controller, late)
        actions.append(scheduler.on_trial_result(controller, late, result(1, 20.0)))
    assert actions == [TrialScheduler.CONTINUE, TrialScheduler.STOP]


class Recorder(Searcher):
    """Proposes 9, and keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.told = list[object]()

    def set_search_properties(self, *_: Any, **__: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> dict[str, Any]:
        return {"x": 9}

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        self.told.append(trial_id)

    def add_evaluated_point(self, parameters: Any, value: float, *_: Any, **__: Any) -> None:
        self.told.append((parameters, value))

    def save(self, checkpoint_path: str) -> None: ...

    def restore(self, checkpoint_path: str) -> None: ...


def test_a_searcher_learns_what_ended_and_gives_what_is_left() -> None:
    past = [Past("a", {"x": 1}, True, [result(1, 30.0)]), Past("b", {"x": 2}, False, [])]
    inner = Recorder()
    searcher = ResumedSearcher(inner, past, "psnr_db")
    searcher.set_search_properties("psnr_db", "max", {})
    assert inner.told == [({"x": 1}, 30.0)]
    assert [searcher.suggest(name) for name in ("t1", "t2")] == [{"x": 2}, {"x": 9}]
    searcher.on_trial_complete("t1", result(3, 31.0))
    searcher.on_trial_complete("t2", result(3, 32.0))
    assert inner.told[1:] == [({"x": 2}, 31.0), "t2"]
    with pytest.raises(NotImplementedError):
        searcher.restore("anywhere")


def test_a_resumed_sweep_keeps_its_limit(tmp_path: Path) -> None:
    assert _limit(tmp_path, None) is None
    assert _limit(tmp_path, 2) == 2
    assert _limit(tmp_path, None) == 2
    # As earlier versions wrote it.
    (tmp_path / "max_concurrent.json").write_text("3")
    assert _limit(tmp_path, None) == 3
    (tmp_path / "max_concurrent.json").write_text("[]")
    with pytest.raises(FileError, match="is damaged: it holds no table"):
        _limit(tmp_path, None)


def test_a_damaged_note_is_named(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"no": 1}'):
        (tmp_path / "trial.json").write_text(text)
        with pytest.raises(FileError, match=r"trial\.json is damaged"):
            Note.read(tmp_path)


TRACE = """Traceback (most recent call last):
  File "a.py", line 3, in get
    value: int = 3
ray.exceptions.RayTaskError(UserError): \x1b[36mray::run()\x1b[39m (pid=1)
  File "b.py", line 3, in run
fedvsr.errors.UserError: no update of round 1 is finite
"""


def test_a_trials_error_is_its_last_exception() -> None:
    assert _reason(TRACE) == "no update of round 1 is finite"
    assert _reason("The actor died unexpectedly") == "The actor died unexpectedly"
    assert _reason("") is None
