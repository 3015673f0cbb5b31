"""Runs a sweep on a Ray cluster: Ray Tune starts, stops and restarts the trials."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from ray import tune
from ray.tune import PlacementGroupFactory, schedulers
from ray.tune.search import BasicVariantGenerator, Searcher, create_searcher

from fedvsr.checked_text import read_json, write_json
from fedvsr.errors import DamagedError, FileError, UserError
from fedvsr.files import missing_folders, remove_folders, remove_temporaries
from fedvsr.loggers.config import require_packages
from fedvsr.plugins import KEPT
from fedvsr.runs.run import run_status
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.expressions import tidy
from fedvsr.tuning.past import Asha, Median, Past, ResumedSearcher, read_past
from fedvsr.tuning.pins import keep, require_same
from fedvsr.tuning.progress import Outcome
from fedvsr.tuning.space import Dimension
from fedvsr.tuning.sweep import Trial, any_trial, describe, save_sweep, saved_sweep
from fedvsr.tuning.table import RUNS, STOPPED_EARLY, SWEEP_FILE, Note
from fedvsr.tuning.trial import RESUMES, bundles_of, run_of, run_trial, trial_of

_TUNE = "tune"
_MAX_CONCURRENT = "max_concurrent"
_LIMIT = f"{_MAX_CONCURRENT}.json"
_MAX_NAME = 120
# The progress that trials report. Tune's own count begins again when a trial is restarted.
_TIME = "round_idx"
_ENVIRONMENT = {
    # Seconds between saves of Tune's state. It is small, and what is lost of it is repeated.
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    # The new reporter prints even with verbose=0; the old one is silent.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@contextmanager
def opened(sweep: SweepConfig, folder: Path, resume: bool) -> Iterator[None]:
    """Make a sweep's folder, or with `resume` find it, and lock it meanwhile.

    Raises:
        UserError: the folder holds another sweep, none to resume, or one that runs already.
    """
    path = folder / SWEEP_FILE
    if resume and not path.exists():
        raise UserError(f"there is no sweep at {folder} to resume; leave --resume out to start it")
    if path.exists():
        if not resume:
            raise UserError(
                f"{folder} holds a sweep of this name; --resume resumes it, --name starts one of "
                "another name"
            )
        before = saved_sweep(path)
        require_same(before.plugins, sweep.plugins, folder)
        # Compared as text, because the order of keys numbers the trials.
        texts = [one.model_dump_json(exclude={"plugins"}) for one in (before, sweep)]
        if texts[0] != texts[1] or before.plugins.keys() != sweep.plugins.keys():
            raise UserError(
                f"{path} is another sweep: the file or --set has changed; give what it was started "
                "with, or start a new sweep by --name"
            )
    new = missing_folders(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise UserError(f"another process runs the sweep in {folder}; wait for it") from None
    try:
        remove_temporaries(folder)
        if not path.exists():
            kept = keep(sweep.plugins, folder)
            save_sweep(sweep.model_copy(update={"plugins": kept}), path)
        yield
    except Exception:
        # Whatever refused it before it began, for example data that is missing.
        if not resume and not (folder / _TUNE).exists():
            for made in (path, folder / _LIMIT, folder / ".lock"):
                made.unlink(missing_ok=True)
            shutil.rmtree(folder / KEPT, ignore_errors=True)
            remove_folders(new)
        raise
    finally:
        lock.release()


def run_sweep(
    sweep: SweepConfig,
    trials: Sequence[Trial] | None,
    folder: Path,
    *,
    max_concurrent: int | None,
) -> list[Outcome]:
    """Run or resume all trials on the connected cluster.

    Args:
        sweep: the sweep, whose folder is `opened`.
        trials: its trials; None if a searcher chooses them.
        folder: the sweep's folder.
        max_concurrent: most trials at once; None runs as many as fit, or in a resumed sweep as
            many as it was started with.

    Returns:
        What Tune knows about each trial, including those that have not started.

    Raises:
        UserError: the package of a logger or of the searcher is not installed.
    """
    folder = folder.resolve()
    os.environ.update({k: v for k, v in _ENVIRONMENT.items() if k not in os.environ})
    _silence_tune()
    require_packages(any_trial(sweep).config.logging)
    past = read_past(sweep, folder / RUNS)
    points, num_new = _to_start(sweep, trials, past, folder / RUNS)
    if not points and not num_new:
        return []
    max_concurrent = _limit(folder, max_concurrent)
    outcomes = _Outcomes(folder / RUNS)
    constant = {"sweep": str(folder), "cwd": str(Path.cwd())}
    if trials is None:
        space = {key: _domain(dimension) for key, dimension in sweep.space.items()}
        searcher: Any = _searcher(sweep)
        searcher = ResumedSearcher(searcher, past, sweep.metric) if past else searcher
    else:
        space = {key: tune.choice([point[key] for point in points]) for key in points[0]}
        # This searcher must know the limit too: with it, Tune ignores its own.
        searcher = BasicVariantGenerator(
            points_to_evaluate=points, max_concurrent=max_concurrent or 0
        )
    # Not by a Tuner: it writes and reads pickles of the sweep. This starts anew in any case, and
    # runs resume from their own checkpoints.
    tune.run(
        tune.with_resources(run_trial, _resources(sweep)),
        name=_TUNE,
        storage_path=str(folder),
        config={**constant, **space},
        metric=sweep.metric,
        mode=sweep.mode,
        search_alg=searcher,
        scheduler=_scheduler(sweep, [trial for trial in past if trial.is_over]),
        num_samples=len(points) + num_new,
        max_concurrent_trials=max_concurrent,
        trial_dirname_creator=partial(_folder_name, tuple(sweep.space)),
        max_failures=sweep.max_failures,
        # With pbt, a trial may continue from an old checkpoint of another.
        checkpoint_config=tune.CheckpointConfig(
            num_to_keep=None if sweep.scheduler.name == "pbt" else 1
        ),
        callbacks=[outcomes],
        raise_on_failed_trial=False,
        verbose=0,
    )
    return outcomes.all()


class _Outcomes(tune.Callback):
    """Follows how trials end, and notes in its run's folder that the scheduler stopped a trial."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._trials: Sequence[Any] = ()
        self._ended = dict[str, str]()

    def on_step_end(self, iteration: int, trials: list[Any], **info: Any) -> None:
        self._trials = trials

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials, self._ended[trial.trial_id] = trials, "TERMINATED"
        run = run_of(self._runs, trial.trial_id)
        note = Note.read(run) if run else None
        if run and note and run_status(run) not in ("finished", "failed"):
            replace(note, ended=STOPPED_EARLY).write(run)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        self._trials, self._ended[trial.trial_id] = trials, "ERROR"

    def all(self) -> list[Outcome]:
        """The outcome of each trial."""
        outcomes = list[Outcome]()
        for trial in self._trials:
            state = self._ended.get(trial.trial_id, "PENDING")
            # As text: the exception itself is a pickle.
            error = trial.get_error() if state == "ERROR" else None
            index = trial.config.get("trial")
            outcomes.append(Outcome(trial.trial_id, index, state, _reason(str(error or ""))))
        return outcomes


def _silence_tune() -> None:
    """Let Ray Tune log errors only, and none that mean nothing to a user."""
    for name in ("ray.tune", "ray.train", "ray.air"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("ray.tune.tune", "ray.tune.execution.tune_controller"):
        logging.getLogger(name).addFilter(_is_no_failed_trial)
    logging.getLogger("ray.tune.execution.experiment_state").addFilter(_is_no_renamed_file)


def _is_no_failed_trial(record: logging.LogRecord) -> bool:
    """Whether Tune logs anything but that a trial failed, which the row of the trial says.

    The traceback is in `error.txt` in Tune's folder of the trial.
    """
    return not record.msg.startswith(("Trial task failed for trial", "Trials did not complete"))


def _is_no_renamed_file(record: logging.LogRecord) -> bool:
    """Whether Tune logs anything but that a temporary file was gone when it was to be copied.

    A thread of Tune copies its state while the next one is written, each file under a temporary
    name first. Nothing is lost: such a copy is followed by another at once, and during the last
    one of a sweep nothing is written.
    """
    error = record.exc_info[1] if record.exc_info else None
    return not (isinstance(error, FileNotFoundError) and "-tmp-" in str(error))


def _reason(text: str) -> str | None:
    """What the last exception of a trial's traceback says; Ray puts its own around it."""
    messages = re.findall(r"^[\w.]+(?:\([\w.]+\))?: (.+)$", text, re.MULTILINE)
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(iter([*messages[::-1], *lines[::-1]]), None)


def _limit(folder: Path, given: int | None) -> int | None:
    """Most trials at once, which a resumed sweep keeps.

    Raises:
        FileError: the file that holds it is damaged.
    """
    path = folder / _LIMIT
    if given is not None:
        write_json(path, {_MAX_CONCURRENT: given})
    if not path.exists():
        return None
    try:
        # Earlier versions wrote only the number.
        text = path.read_text()
        limit = text if text.isdecimal() else read_json(path)[_MAX_CONCURRENT]
        return max(1, int(limit))
    except DamagedError:
        raise
    except (ValueError, TypeError, KeyError):
        raise FileError(path, "is damaged: it holds no number of trials") from None


def _to_start(
    sweep: SweepConfig, trials: Sequence[Trial] | None, past: Sequence[Past], runs: Path
) -> tuple[list[dict[str, Any]], int]:
    """What is to start or to resume: points of the space, and how many the searcher adds."""
    left = [trial for trial in past if not trial.is_over]
    if trials is None:
        return [dict(t.values) for t in left], max(0, sweep.searcher.num_samples - len(past))
    # Each trial is a given point, so that Tune's loggers show its values by name.
    if sweep.scheduler.name != "pbt":
        over = {trial.trial_id for trial in past if trial.is_over}
        return [{"trial": t.index, **_own(sweep, t)} for t in trials if t.run_id not in over], 0
    # A population's runs have other values than its trials began with.
    resumed = [{"trial": i, RESUMES: t.trial_id, **t.values} for i, t in enumerate(left)]
    notes = [Note.read(path.parent) for path in runs.glob("*/trial.json")]
    started = [note.values for note in notes if note and note.parent_run_id is None]
    new = [trial for trial in trials if dict(trial.values) not in started]
    return [*resumed, *({"trial": t.index, RESUMES: "", **_own(sweep, t)} for t in new)], 0


def _folder_name(swept: Sequence[str], trial: Any) -> str:
    """Folder of Tune's logs of a trial; TensorBoard shows it as the trial's name."""
    values = describe({key: trial.config[key] for key in swept})
    return re.sub(r"[^\w=.-]+", "-", f"{trial.trial_id} {values}")[:_MAX_NAME]


def _own(sweep: SweepConfig, trial: Trial) -> dict[str, Any]:
    """A trial's values without those that constraints compute."""
    return {key: value for key, value in trial.values.items() if key not in sweep.constraints}


def _resources(sweep: SweepConfig) -> Callable[[dict[str, Any]], PlacementGroupFactory]:
    """A function that says what the trial of some settings reserves."""

    def resources_of(settings: dict[str, Any]) -> PlacementGroupFactory:
        return bundles_of(sweep, trial_of(sweep, settings).config)

    return resources_of


def _domain(dimension: Dimension) -> Any:
    if dimension.uniform:
        return tune.uniform(*dimension.uniform)
    if dimension.loguniform:
        return tune.loguniform(*dimension.loguniform)
    return tune.choice(dimension.finite or [])


def _searcher(sweep: SweepConfig) -> Searcher:
    """Ray Tune's wrapper of the sweep's searcher.

    Raises:
        UserError: its package is not installed.
    """
    name = sweep.searcher.name
    try:
        searcher: Searcher = create_searcher(
            name,
            metric=sweep.metric,
            mode=sweep.mode,
            seed=sweep.searcher.seed,
            random_state_seed=sweep.searcher.seed,
        )
    except (ImportError, AssertionError) as error:
        raise UserError(f"searcher.name = {name} cannot be used: {error}") from None
    return searcher


def _scheduler(sweep: SweepConfig, past: Sequence[Past]) -> schedulers.TrialScheduler | None:
    config = sweep.scheduler
    if config.name == "asha":
        asha = Asha(
            time_attr=_TIME,
            grace_period=config.grace_rounds,
            reduction_factor=config.reduction_factor,
            # No limit: a run ends after its last round.
            max_t=1_000_000,
        )
        asha.past = past
        return asha
    if config.name == "median":
        median = Median(time_attr=_TIME, grace_period=config.grace_rounds)
        median.past = past
        return median
    if config.name == "pbt":
        space = sweep.space.items()
        return schedulers.PopulationBasedTraining(
            time_attr=_TIME,
            perturbation_interval=config.perturb_rounds,
            quantile_fraction=config.quantile,
            resample_probability=config.resample_probability,
            hyperparam_mutations={key: d.finite or _domain(d) for key, d in space},
            custom_explore_fn=partial(_within, sweep),
        )
    return None


def _within(sweep: SweepConfig, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings that population-based training has changed, moved back into the space."""
    for key, dimension in sweep.space.items():
        if bounds := dimension.uniform or dimension.loguniform:
            settings[key] = tidy(min(max(settings[key], bounds[0]), bounds[1]))
    return settings
