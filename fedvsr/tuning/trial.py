"""Runs one trial: an experiment in a process that Ray Tune starts, stops and restarts."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypedDict

from ray import tune
from ray.tune import PlacementGroupFactory
from ray.util.placement_group import get_current_placement_group

from fedvsr.checked_text import read_json, write_json
from fedvsr.config import ExperimentConfig
from fedvsr.data.owners import Owners
from fedvsr.errors import UserError
from fedvsr.federation.config import AUTO
from fedvsr.federation.executors import Clients, Executor, SerialExecutor
from fedvsr.federation.placement import Placement, Slots, ask
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.heap import keep_freed
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data, with_owners
from fedvsr.runs.run import Run, open_run, run_status
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.estimate import slots_of
from fedvsr.tuning.population import fork, pack
from fedvsr.tuning.space import Value
from fedvsr.tuning.sweep import Trial, make_trial, saved_sweep
from fedvsr.tuning.table import (
    RUNS,
    SWEEP_FILE,
    Note,
    Scores,
    history,
    newest_runs,
    reported,
    scores_of,
)

# Processes of a killed sweep end within seconds.
_LOCK_WAIT_S, _POLL_S = 120.0, 0.5
_POINTER = "reported.json"
RESUMES = "resumes"


class _Pointer(TypedDict):
    """What a checkpoint of Tune holds: a run, and its last round that was reported."""

    run_id: str
    round_idx: int


def run_trial(settings: dict[str, Value]) -> None:
    """Run or resume one trial, and report every evaluated round to Tune.

    The trial resumes from its run's own folder. Tune's checkpoint says only which rounds were
    reported, and with population-based training holds the run's state for another trial.

    Args:
        settings: `sweep`, the sweep's folder; `cwd`, the folder of relative paths; `trial`, its
            index, unless a searcher chose it; in population-based training `resumes`, the run that
            it resumes; and the trial's values by name.
    """
    # The trial's own process trains nothing on a GPU, but Ray would show it every GPU.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    keep_freed()
    os.chdir(str(settings["cwd"]))
    folder = Path(str(settings["sweep"]))
    sweep = saved_sweep(folder / SWEEP_FILE)
    trial = trial_of(sweep, settings)
    split = prepare_data(trial.config, lambda *_: None)
    split = with_owners(trial.config, split, on_ray=sweep.executor != "serial")
    population = sweep.scheduler.name == "pbt"
    if population:
        run = _population_run(trial, folder / RUNS, str(settings.get(RESUMES, "")))
    else:
        run = _own_run(trial, folder / RUNS)
    _wait_until_unlocked(run)
    note = Note.read(run.folder) or _note(trial)
    replace(
        note,
        attempts=note.attempts + 1,
        tune_trial_id=tune.get_context().get_trial_id(),
        member=note.trial,
    ).write(run.folder)
    report = _Reporter(run, population)
    report.new()
    if run_status(run.folder) == "finished":
        return
    try:
        for event in execute(run, split, _executor(sweep, trial.config), notes=_notes(trial)):
            # The last round is reported after the run has finished: a scheduler may end a trial at
            # any report, and the network is saved only after the last round.
            last = trial.config.federation.num_rounds
            if isinstance(event, RoundRecorded) and event.scores and event.round_idx < last:
                report.add(event)
    except UserError:
        if not report.any:
            raise
        # A retry with equal settings would fail again, so Tune does not hear of the failure; the
        # run's record says why.
        return
    report.new()


def trial_of(sweep: SweepConfig, settings: Mapping[str, Value]) -> Trial:
    """The trial of Tune's settings (see `run_trial`)."""
    point = {k: v for k, v in settings.items() if k in sweep.space or (k == "seed" and sweep.seeds)}
    return make_trial(sweep, int(settings.get("trial", 0)), point)


def bundles_of(sweep: SweepConfig, config: ExperimentConfig) -> PlacementGroupFactory:
    """What a trial reserves on the connected cluster."""
    if sweep.executor == "serial":
        return PlacementGroupFactory([{"CPU": config.local.num_threads}])
    slots = wanted(config)
    return PlacementGroupFactory(
        slots.bundles, strategy="PACK", bundle_label_selector=slots.selectors
    )


def wanted(config: ExperimentConfig) -> Slots:
    """The driver and the slots of a trial: `cluster.slots`, by default one, or one per owner.

    Raises:
        UserError: the cluster lacks the GPU that the configuration names.
    """
    federation, cluster = config.federation, config.cluster
    few = cluster.model_copy(update={"slots": slots_of(config)})
    owners = Owners.in_config(config.data)
    return ask(few, config.local.num_threads, federation.clients_per_round, owners)


def _executor(sweep: SweepConfig, config: ExperimentConfig) -> Callable[[Clients], Executor]:
    """Clients become actors inside the trial's own placement group, or train in this process."""
    if sweep.executor == "serial":
        return SerialExecutor
    group = get_current_placement_group()
    assert group is not None, "Tune places a trial in a group"
    return partial(RayExecutor, config=config.cluster, placement=Placement(group, wanted(config)))


def _notes(trial: Trial) -> tuple[str, ...]:
    if trial.config.cluster.clients_per_gpu != AUTO:
        return ()
    return (
        f"cluster.clients_per_gpu = {AUTO} counts as 1 in a sweep, which reserves whole GPUs for "
        "trials before anything is measured; give a number to let a trial's clients share them",
    )


def _own_run(trial: Trial, runs: Path) -> Run:
    """The trial's run, found by its settings, so that resuming needs nothing from Tune."""
    return open_run(trial.config, runs / trial.run_id)


def run_of(runs: Path, tune_id: str) -> Path | None:
    """The newest run of the trial that Tune knows by an id; None if it has none yet."""
    for folder in newest_runs(runs).values():
        note = Note.read(folder)
        if note is not None and note.tune_trial_id == tune_id:
            return folder
    return None


def _population_run(trial: Trial, runs: Path, resumes: str) -> Run:
    """The newest run of this trial, or a new one that continues from another trial's state."""
    tune_id = tune.get_context().get_trial_id()
    own, name = run_of(runs, tune_id), f"{trial.config.name}-{tune_id}"
    checkpoint = tune.get_checkpoint()
    if checkpoint is None:
        return open_run(trial.config, own or runs / (resumes or name))
    with checkpoint.as_directory() as path:
        pointer = _pointer(Path(path))
        target = runs / f"{name}-from-{pointer['round_idx']:04d}"
        if own and (own.name == pointer["run_id"] or own == target):
            return open_run(trial.config, own)
        run, parent = open_run(trial.config, target), runs / pointer["run_id"]
        from_round = fork(parent, Path(path), run.folder, trial.config)
        before = Note.read(own) if own else None
        replace(
            _note(trial),
            parent_run_id=parent.name,
            from_round=from_round,
            member=before.trial if before else tune_id,
        ).write(run.folder)
        return run


def _note(trial: Trial) -> Note:
    return Note(dict(trial.values), 0, tune.get_context().get_trial_id())


class _Reporter:
    """Reports to Tune the rounds of a run that it has not seen."""

    def __init__(self, run: Run, with_state: bool) -> None:
        self._run, self._with_state = run, with_state
        self._last = -1
        checkpoint = tune.get_checkpoint()
        if checkpoint is not None:
            with checkpoint.as_directory() as path:
                self._last = _pointer(Path(path))["round_idx"]

    @property
    def any(self) -> bool:
        """Whether any round was ever reported."""
        return self._last >= 0

    def new(self) -> None:
        """Report the rounds that the tables of the run hold since the last report."""
        known = [m for m in history(self._run.folder) if m["round_idx"] > self._last]
        if self._with_state and not self.any:
            # A population exchanges by its newest results; an old one has no state any more.
            known = known[-1:]
        self._report(known)

    def add(self, event: RoundRecorded) -> None:
        """Report a round that was just recorded, without the tables, which grow with each round."""
        if event.loss is None and event.round_idx > 0:
            # A resumed run has scored a round again whose loss only the table holds.
            self.new()
        elif event.round_idx > self._last:
            self._report([scores_of(event)])

    def _report(self, known: Iterable[Scores]) -> None:
        for scores in known:
            self._last = scores["round_idx"]
            with tempfile.TemporaryDirectory() as path:
                pointer = _Pointer(run_id=self._run.run_id, round_idx=self._last)
                write_json(Path(path) / _POINTER, pointer)
                if self._with_state:
                    pack(self._run.folder, Path(path))
                tune.report(reported(scores), checkpoint=tune.Checkpoint.from_directory(path))


def _pointer(path: Path) -> _Pointer:
    table = read_json(path / _POINTER)
    return _Pointer(run_id=table["run_id"], round_idx=table["round_idx"])


def _wait_until_unlocked(run: Run) -> None:
    deadline = time.monotonic() + _LOCK_WAIT_S
    while run_status(run.folder) == "running":
        if time.monotonic() > deadline:
            raise UserError(f"another process is writing {run.folder}; stop it, then --resume")
        time.sleep(_POLL_S)
