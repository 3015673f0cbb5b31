"""What a sweep's trials did before it is resumed, for the scheduler and the searcher.

It is read from the runs' own tables. Ray Tune could restore its state instead, but unpickles it,
which runs code of whoever wrote the folder.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ray.tune import schedulers
from ray.tune.search import Searcher

from fedvsr.runs.run import run_status
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.space import Value
from fedvsr.tuning.table import STOPPED_EARLY, Note, Scores, history, newest_runs, reported

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


@dataclass(frozen=True, eq=False)
class Past:
    """A trial that has started. Compared by identity, because schedulers keep trials as keys."""

    trial_id: str
    """Id of its run, which schedulers take for a trial's."""
    values: Mapping[str, Value]
    """Its values in the space, without those that constraints compute."""
    is_over: bool
    """Whether it has finished, or the scheduler has stopped it."""
    results: Sequence[Mapping[str, Any]]
    """Its evaluated rounds, as it reported them."""


def read_past(sweep: SweepConfig, runs: Path) -> list[Past]:
    """The trials that have started, in the order they did."""
    past = list[Past]()
    for folder in newest_runs(runs).values():
        note = Note.read(folder)
        assert note is not None
        values = {key: note.values[key] for key in note.values if key not in sweep.constraints}
        over = run_status(folder) == "finished" or note.ended == STOPPED_EARLY
        results = [_flat(scores) for scores in history(folder)]
        past.append(Past(folder.name, values, over, results))
    return past


def _flat(scores: Scores) -> dict[str, Any]:
    """Scores under the names that Tune gives to reported ones: `test/Vid4/psnr_db`."""
    flat = {name: value for name, value in reported(scores).items() if name != "test"}
    for test_set, means in scores["test"].items():
        flat |= {f"test/{test_set}/{name}": value for name, value in means.items()}
    return flat


class _Remembering(schedulers.TrialScheduler):
    """A scheduler that learns of earlier trials before its first one."""

    past: Sequence[Past] = ()

    def on_trial_add(self, tune_controller: TuneController, trial: Trial) -> None:
        past, self.past = self.past, ()
        for earlier in past:
            self._learn(tune_controller, earlier)
        super().on_trial_add(tune_controller, trial)

    def _learn(self, controller: TuneController, earlier: Any) -> None:
        """Take note of the results of an earlier trial."""
        raise NotImplementedError


class Asha(_Remembering, schedulers.AsyncHyperBandScheduler):
    """Asynchronous successive halving, in which earlier trials stand on the rungs they reached."""

    def _learn(self, controller: TuneController, earlier: Any) -> None:
        super(_Remembering, self).on_trial_add(controller, earlier)
        for result in earlier.results:
            self.on_trial_result(controller, earlier, dict(result))


class Median(_Remembering, schedulers.MedianStoppingRule):
    """The median stopping rule, whose median counts earlier trials."""

    def _learn(self, controller: TuneController, earlier: Any) -> None:
        for result in earlier.results:
            self.on_trial_complete(controller, earlier, dict(result))


class ResumedSearcher(Searcher):
    """A searcher that proposes unfinished trials first, and knows the results of those that ended.

    Args:
        inner: the searcher, new.
        past: the trials that have started.
        metric: name of the metric.
    """

    def __init__(self, inner: Searcher, past: Sequence[Past], metric: str) -> None:
        super().__init__(metric=inner.metric, mode=inner.mode)
        self._inner, self._reported = inner, metric
        self._left = [dict(trial.values) for trial in past if not trial.is_over]
        self._known = [trial for trial in past if trial.is_over]
        self._given = dict[str, dict[str, Value]]()

    def set_search_properties(
        self, metric: str | None, mode: str | None, config: dict[str, Any], **spec: Any
    ) -> bool:
        """Set the space of the searcher, and then tell it what is known."""
        done = bool(self._inner.set_search_properties(metric, mode, config, **spec))
        for trial in self._known:
            if trial.results:
                self._tell(trial.values, trial.results[-1])
        return done

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        """An unfinished trial's values, or else new ones."""
        if self._left:
            self._given[trial_id] = self._left.pop(0)
            return dict(self._given[trial_id])
        proposed: dict[str, Any] | None = self._inner.suggest(trial_id)
        return proposed

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Pass on a result of a trial that the searcher proposed."""
        if trial_id not in self._given:
            self._inner.on_trial_result(trial_id, result)

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Pass on the last result of a trial."""
        values = self._given.pop(trial_id, None)
        if values is None:
            self._inner.on_trial_complete(trial_id, result, error)
        elif result and not error:
            self._tell(values, result)

    def set_max_concurrency(self, max_concurrent: int) -> bool:
        """Let the searcher limit itself, if it can."""
        return bool(self._inner.set_max_concurrency(max_concurrent))

    def save(self, checkpoint_path: str) -> None:
        """Write the searcher's state for Tune, which nothing reads."""

    def restore(self, checkpoint_path: str) -> None:
        """Refuse: a searcher's state is a pickle."""
        raise NotImplementedError

    def _tell(self, values: Mapping[str, Value], result: Mapping[str, Any]) -> None:
        value = result.get(self._reported)
        try:
            if value is not None:
                self._inner.add_evaluated_point(dict(values), float(value))
        except NotImplementedError:
            logging.getLogger("fedvsr").warning(
                "%s takes no results of earlier trials; it proposes new ones without them",
                type(self._inner).__name__,
            )
