"""The state of a sweep's trials, read again and again from their runs' folders while it runs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from fedvsr.config import ExperimentConfig
from fedvsr.files import replacing
from fedvsr.runs.run import run_status
from fedvsr.tuning.space import Value
from fedvsr.tuning.sweep import SweepConfig, Trial
from fedvsr.tuning.table import RUNS, Note, column_of, newest_runs, row_of, write_trials

Row = dict[str, Any]
_PERIOD_S = 1.0


@dataclass(frozen=True)
class Outcome:
    """What Tune knows of a trial."""

    tune_trial_id: str
    index: int | None
    """Of the trial; None where the searcher chose it."""
    state: str
    """TERMINATED, ERROR, or another where the sweep was stopped."""
    error: str | None


class Watch:
    """Reads all trials every second in a thread, passes them on, and keeps `trials.parquet`.

    Args:
        sweep: the sweep.
        trials: all of them; None where the searcher chooses them.
        folder: the sweep's.
        show: what to do with the rows when one of them has changed.
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

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        if self._error:
            raise self._error

    def finish(self, outcomes: Sequence[Outcome]) -> list[Row]:
        """The last rows, with what Tune knows: which trials were stopped early, and which failed.

        Args:
            outcomes: as `run_sweep` returns them.
        """
        by_id = {outcome.tune_trial_id: outcome for outcome in outcomes}
        by_index = {outcome.index: outcome for outcome in outcomes}
        self._look()
        for row in self._rows:
            note = Note.read(self._folder / RUNS / row["run_id"])
            # A trial that never came to its run is known by its number alone.
            known = by_id.get(note.tune_trial_id) if note else by_index.get(row["trial"])
            if known is None:
                continue
            if known.state == "ERROR":
                row |= {"status": "failed", "error": row.get("error") or known.error}
            elif known.state == "TERMINATED" and row["status"] == "interrupted":
                row["status"] = "stopped_early"
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
            self._error = error

    def _look(self) -> None:
        if self._trials is None or self._sweep.scheduler.name == "pbt":
            found = _searched(self._folder / RUNS)
        else:
            runs = self._folder / RUNS
            found = [(t.index, t.values, t.config, runs / t.run_id) for t in self._trials]
        self._rows = [self._row(*trial) for trial in found]

    def _row(
        self, index: int, values: Mapping[str, Value], config: ExperimentConfig, folder: Path
    ) -> Row:
        """Read anew only if a file or the status has changed."""
        files = [folder / name for name in ("trial.json", "runs.parquet", "rounds.parquet")]
        state = [path.stat().st_mtime_ns if path.exists() else 0 for path in files]
        now = (state, run_status(folder) if state[0] else "")
        if self._known.get(folder, (None,))[0] != now:
            self._known[folder] = now, row_of(self._sweep.name, index, values, config, folder)
        return {**self._known[folder][1]}

    def _write(self) -> None:
        swept = dict.fromkeys([*self._sweep.space, *self._sweep.constraints])
        if self._sweep.seeds:
            swept["seed"] = None
        write_trials(self._folder / "trials.parquet", self._rows, swept)


def best_of(rows: Sequence[Row], sweep: SweepConfig) -> list[Row]:
    """Rows that have the sweep's metric, the best first; finished ones before those stopped."""
    column = column_of(sweep.metric)
    sign = -1 if sweep.mode == "max" else 1
    have = [row for row in rows if row.get(column) is not None and row["status"] != "failed"]
    return sorted(have, key=lambda row: (row["status"] != "finished", sign * row[column]))


def write_best(sweep: SweepConfig, row: Row, folder: Path) -> Path:
    """Write the configuration of a trial as `best.yaml`, which `fedvsr run` takes."""
    config = _config(folder / RUNS / row["run_id"])
    column = column_of(sweep.metric)
    text = (
        f"# Of the sweep {sweep.name} the trial {row['trial']} ({row['run_id']}), with "
        f"{column} = {row[column]:.4f} after {row['round_idx']} rounds.\n"
    )
    with replacing(folder / "best.yaml") as aside:
        aside.write_text(text + config.model_copy(update={"name": f"{sweep.name}-best"}).to_yaml())
    return folder / "best.yaml"


def _searched(runs: Path) -> list[tuple[int, Mapping[str, Value], ExperimentConfig, Path]]:
    """The trials that have begun so far, in the order they did."""
    found = list[tuple[int, Mapping[str, Value], ExperimentConfig, Path]]()
    for index, folder in enumerate(newest_runs(runs).values()):
        note = Note.read(folder)
        assert note is not None
        found.append((index, note.values, _config(folder), folder))
    return found


def _config(run: Path) -> ExperimentConfig:
    return ExperimentConfig.model_validate(yaml.safe_load((run / "config.yaml").read_text()))
