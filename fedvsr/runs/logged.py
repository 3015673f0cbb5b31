"""A run's events on their way to its loggers: what is logged, and what is told of failures."""

from __future__ import annotations

import math
import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

from fedvsr.federation.executors import Fault
from fedvsr.loggers.feed import Ending, Feed, Logger, Loggers, Picture, Round, Status
from fedvsr.loggers.subject import Subject
from fedvsr.means import last_evaluation
from fedvsr.metrics import columns
from fedvsr.recording import RunRecords
from fedvsr.records import checked_table
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.pace import round_s
from fedvsr.runs.run import Run

_Row = Mapping[str, Any]
# Columns of `rounds`, by the group in which loggers show them.
_GROUPS = {
    "train": ("loss", "vsr_loss", "epsilon", "weights_hellinger", "weights_deviation"),
    "clients": ("num_sampled", "num_failed", "num_rejected", "num_upload_failures", "num_online"),
    "bytes": ("upload_bytes", "download_bytes"),
    "seconds": ("train_s", "aggregate_s", "evaluate_s", "gap_s"),
}
_BY_ROUND = ("rounds", "clients", "evaluations")
_TABLES = ("runs", "rounds", "clients", "evaluations", "partition", "faults")
# Order in which the pictures of a clip are shown.
_KINDS = ("lq", "bicubic", "sr", "gt")
_PICTURE = re.compile(r"(?P<clip>.+)_\d+_(?P<kind>[a-z]+)\.png")


class RunLoggers:
    """Tells the loggers of a run what is recorded.

    Args:
        run: the run, whose configuration chooses the loggers. None of them is open before it
            starts.
        records: its tables.
    """

    def __init__(self, run: Run, records: RunRecords) -> None:
        self._run, self._records = run, records
        self._round_idx = 0
        subject = Subject(
            run.run_id,
            run.folder,
            run.config.federation.num_rounds,
            run.config.model_dump(mode="json", exclude={"logging"}),
            {"model": run.config.model.name, "algorithm": run.config.algorithm.name},
        )
        chosen = run.config.logging.chosen
        self._loggers = Loggers([Feed(name, partial(_open, name, run, subject)) for name in chosen])
        self._chosen = bool(chosen)

    def tell(self, event: Event) -> None:
        """Send what an event brings. What it reports is in the tables already."""
        if not self._chosen:
            return
        if isinstance(event, RunStarted):
            self._round_idx = event.round_idx
            self._loggers.start(partial(_past, self._run.folder, event.round_idx))
        elif isinstance(event, RoundRecorded):
            self._round_idx = event.round_idx
            rows = {name: self._records.of_round(name, event.round_idx) for name in _BY_ROUND}
            self._loggers.add(Round(event.round_idx, values(rows)))

    def end(self, status: Status) -> None:
        """Send what the run leaves, and wait for the loggers, within a limit."""
        self._loggers.end(status, partial(_ending, self._run, self._round_idx, status))

    def faults(self) -> list[Fault]:
        """Failures of loggers since this was last asked."""
        return [
            Fault(self._round_idx, None, "logger", trouble.message, final=trouble.final)
            for trouble in self._loggers.troubles()
        ]


def values(rows: Mapping[str, Sequence[_Row]]) -> dict[str, float]:
    """What is logged of a round: `train/loss`, `test/NAME/psnr_db` and so on.

    Args:
        rows: its rows of the tables `rounds`, `clients` and `evaluations`.

    Returns:
        The values by name; those that are missing or not finite are left out.
    """
    (row,) = rows["rounds"]
    named = {f"{group}/{name}": row.get(name) for group, own in _GROUPS.items() for name in own}
    if rows["clients"] and row.get("train_s") is not None:
        first_s = min(client.get("started_s") or 0.0 for client in rows["clients"])
        named["seconds/round_s"] = round_s(row.get("gap_s"), row["train_s"], first_s)
    for name, own in _by_test_set(rows["evaluations"]).items():
        named |= {f"test/{name}/{key}": value for key, value in _means(own).items()}
    return {k: float(v) for k, v in named.items() if v is not None and math.isfinite(v)}


def _by_test_set(evaluations: Sequence[_Row]) -> dict[str, list[_Row]]:
    sets = dict[str, list[_Row]]()
    for row in evaluations:
        sets.setdefault(str(row["test_set"]), []).append(row)
    return sets


def _means(evaluations: Sequence[_Row]) -> dict[str, float]:
    """Means over rows of one test set, of the columns that all of them have."""
    shared = [name for name in columns() if all(row.get(name) is not None for row in evaluations)]
    return {name: fmean(row[name] for row in evaluations) for name in shared}


def _past(folder: Path, until: int, after: int) -> Iterator[Round]:
    """The rounds after one, up to another, whose record was complete before this process."""
    if after >= until and until > 0:
        return
    by_round = dict[int, dict[str, list[_Row]]]()
    for name in _BY_ROUND:
        for row in checked_table(folder, name).to_pylist():
            own = by_round.setdefault(row["round_idx"], {name: [] for name in _BY_ROUND})
            own[name].append(row)
    for round_idx, rows in sorted(by_round.items()):
        complete = rows["rounds"] and rows["rounds"][0]["evaluate_s"] is not None
        if after < round_idx <= until and complete:
            yield Round(round_idx, values(rows))


def _ending(run: Run, round_idx: int, status: Status) -> Ending:
    """What a run leaves, if it has finished."""
    if status != "finished":
        return Ending(status, round_idx)
    folder = run.folder
    tables = [path for name in _TABLES if (path := folder / f"{name}.parquet").exists()]
    last = last_evaluation(checked_table(folder, "evaluations")).to_pylist()
    scores: list[dict[str, str | float]] = [
        {"test_set": name, "clips": len({row["clip_id"] for row in rows}), **_means(rows)}
        for name, rows in _by_test_set(last).items()
    ]
    shared = [key for key in scores[0] if all(key in row for row in scores)] if scores else []
    return Ending(
        status,
        round_idx,
        [{key: row[key] for key in shared} for row in scores],
        list(_pictures(folder / "frames")),
        tables,
    )


def _pictures(folder: Path) -> Iterator[Picture]:
    matches = [(path, _PICTURE.fullmatch(path.name)) for path in sorted(folder.glob("*.png"))]
    found = [Picture(m["clip"], m["kind"], path) for path, m in matches if m]
    yield from sorted(
        (picture for picture in found if picture.kind in _KINDS),
        key=lambda picture: (picture.clip, _KINDS.index(picture.kind)),
    )


def _open(name: str, run: Run, subject: Subject, given_up: threading.Event) -> Logger:
    """Open a logger. Only now is its package loaded, in the logger's own thread."""
    config = run.config.logging
    if name == "mlflow":
        from fedvsr.loggers.mlflow import Mlflow

        assert config.mlflow is not None
        return Mlflow(config.mlflow, subject, given_up)
    if name == "wandb":
        from fedvsr.loggers.wandb import WeightsAndBiases

        assert config.wandb is not None
        return WeightsAndBiases(config.wandb, subject)
    from fedvsr.loggers.tensorboard import TensorBoard

    return TensorBoard(subject)
