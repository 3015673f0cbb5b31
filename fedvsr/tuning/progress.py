"""The state of a sweep's trials, read from their runs' folders while the sweep runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedvsr import journal, plugins
from fedvsr.checked_text import read_yaml
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.files import replacing
from fedvsr.runs.run import run_status, stored_config
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.space import Value
from fedvsr.tuning.sweep import Trial
from fedvsr.tuning.table import (
    RUNS,
    STOPPED_EARLY,
    Note,
    column_of,
    newest_runs,
    read_trials,
    row_of,
    write_trials,
)

Row = dict[str, Any]
"""A row of `trials.parquet`, by column."""

_PERIOD_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What Ray Tune knows about a trial."""

    tune_trial_id: str
    index: int | None
    """Index of the trial; None if a searcher chose it."""
    state: str
    """TERMINATED, ERROR, or PENDING if the sweep was stopped."""
    error: str | None


class TrialMonitor:
    """Reads the runs of all trials every second in a thread, and writes `trials.parquet`.

    Args:
        sweep: the sweep.
        trials: its trials; None if a searcher chooses them.
        folder: the sweep's folder.
        show: called with all rows after one has changed.
    """

    def __init__(
        self,
        sweep: SweepConfig,
        trials: Sequence[Trial] | None,
        folder: Path,
        show: Callable[[list[Row]], None],
    ) -> None:
        self._sweep, self._trials, self._folder, self._show = sweep, trials, folder, show
        self._known = dict[Path, tuple[object, Row]]()
        self._rows: list[Row] = []
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> TrialMonitor:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def finish(self, outcomes: Sequence[Outcome]) -> list[Row]:
        """Write and return the final rows, which also say which trials Tune stopped or gave up.

        Args:
            outcomes: what `run_sweep` has returned.
        """
        by_id = {outcome.tune_trial_id: outcome for outcome in outcomes}
        by_index = {outcome.index: outcome for outcome in outcomes}
        self._look()
        for row in self._rows:
            note = _note(self._folder / RUNS / row["run_id"])
            # A trial that never started its run is known only by its index.
            outcome = by_id.get(note.tune_trial_id) if note else by_index.get(row["trial"])
            if outcome is None:
                continue
            if outcome.state == "ERROR":
                row |= {"status": "failed", "error": row.get("error") or outcome.error}
            elif outcome.state == "TERMINATED" and row["status"] in ("interrupted", "running"):
                # The process that Tune has stopped may take a moment to die.
                row["status"] = STOPPED_EARLY
        self._write()
        return self._rows

    def _run(self) -> None:
        try:
            while True:
                before = self._rows
                self._look()
                if self._rows != before:
                    self._write()
                    self._show(self._rows)
                if self._stop.wait(_PERIOD_S):
                    break
        except BaseException as error:
            # Raised again by `__exit__`, whatever it is.
            self._error = error

    def _look(self) -> None:
        runs = self._folder / RUNS
        if self._trials is None or self._sweep.scheduler.name == "pbt":
            trials = _started_trials(runs)
        else:
            trials = [
                (t.index, t.values, t.config.federation.num_rounds, runs / t.run_id)
                for t in self._trials
            ]
        self._rows = [self._row(*trial) for trial in trials]

    def _row(self, index: int, values: Mapping[str, Value], num_rounds: int, folder: Path) -> Row:
        """A trial's row, which is read again only after a file or the status has changed."""
        names = ("trial.json", "runs.parquet", "rounds.parquet", journal.NAME)
        times = [_changed_at(folder / name) for name in names]
        state = (times, _status(folder) if times[0] else "")
        if self._known.get(folder, (None,))[0] != state:
            self._known[folder] = state, row_of(self._sweep.name, index, values, num_rounds, folder)
        return {**self._known[folder][1]}

    def _write(self) -> None:
        swept = dict.fromkeys([*self._sweep.space, *self._sweep.constraints])
        if self._sweep.seeds:
            swept["seed"] = None
        write_trials(self._folder / "trials.parquet", self._rows, swept)


def current_rows(folder: Path) -> list[Row]:
    """The rows of a sweep's `trials.parquet`; those that had not ended are read from their runs.

    A sweep that was killed leaves trials as `running`; they are `interrupted` if no process
    executes them any more.

    Raises:
        UserError: there is no sweep in the folder, or its table is damaged.
    """
    rows = list[Row]()
    for stored in read_trials(folder / "trials.parquet").to_dict("records"):
        row: Row = {str(key): None if value != value else value for key, value in stored.items()}
        run = folder / RUNS / str(row["run_id"])
        if row["status"] in ("running", "interrupted", "pending") and run.is_dir():
            row["status"] = "interrupted"
            with skipping(run):
                row |= row_of(row["sweep"], row["trial"], {}, _num_rounds(run), run)
        rows.append(row)
    return rows


def best_of(rows: Sequence[Row], sweep: SweepConfig) -> list[Row]:
    """The rows that have the sweep's metric: finished trials first, the best of them on top."""
    column = column_of(sweep.metric)
    sign = -1 if sweep.mode == "max" else 1
    scored = [row for row in rows if row.get(column) is not None and row["status"] != "failed"]
    return sorted(scored, key=lambda row: (row["status"] != "finished", sign * row[column]))


def write_best(sweep: SweepConfig, row: Row, folder: Path) -> Path:
    """Write a trial's configuration to `best.yaml`, for `fedvsr run`; return the path.

    Users edit this file, so it holds no checksum.
    """
    config = stored_config(folder / RUNS / row["run_id"])
    column = column_of(sweep.metric)
    text = (
        f"# Trial {row['trial']} ({row['run_id']}) of the sweep {sweep.name}, with "
        f"{column} = {row[column]:.4f} after {row['round_idx']} rounds.\n"
    )
    best = config.model_copy(update={"name": f"{sweep.name}-best"})
    plugins.keep(best.plugins(), folder)
    with replacing(folder / "best.yaml") as aside:
        aside.write_text(text + best.kept_yaml())
    return folder / "best.yaml"


def _started_trials(runs: Path) -> list[tuple[int, Mapping[str, Value], int, Path]]:
    """Number, values, rounds and run of each trial that has started, in that order."""
    trials = list[tuple[int, Mapping[str, Value], int, Path]]()
    for index, folder in enumerate(newest_runs(runs).values()):
        with skipping(folder):
            note = Note.read(folder)
            assert note is not None
            trials.append((index, note.values, _num_rounds(folder), folder))
    return trials


def _num_rounds(run: Path) -> int:
    """Rounds of a run, by its configuration, of which no plug-in is executed.

    Raises:
        FileError: the configuration is damaged or foreign.
    """
    federation = read_yaml(run / "config.yaml").get("federation")
    num_rounds = federation.get("num_rounds") if isinstance(federation, dict) else None
    if not isinstance(num_rounds, int):
        raise FileError(run / "config.yaml", "is no configuration of fedvsr")
    return num_rounds


def _note(folder: Path) -> Note | None:
    try:
        return Note.read(folder)
    except UserError:
        # The trial's row names the damaged file.
        return None


def _status(folder: Path) -> str:
    try:
        return run_status(folder)
    except UserError:
        # Its row says which file is damaged.
        return "damaged"


def _changed_at(path: Path) -> int:
    """When a file last changed, in nanoseconds; 0 if it is missing, as a run's journal often is."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
