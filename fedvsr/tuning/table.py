"""The results of a sweep's trials: read from the runs' tables, written as one row per trial."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.checked import read_parquet, write_parquet
from fedvsr.checked_text import read_json, write_json
from fedvsr.config import ExperimentConfig
from fedvsr.data.testsets import listed_clips, planned_names
from fedvsr.data.videos import absolute
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.lookup import did_you_mean
from fedvsr.means import by_test_set, groups, last_evaluation, mean_scores
from fedvsr.metrics import METRICS
from fedvsr.records import checked_table, read_run
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.run import run_status
from fedvsr.schemas import SCHEMAS
from fedvsr.tuning.space import Value

SCHEMA_VERSION = 2

# Names in a sweep's folder: its file, and the folder of its runs.
SWEEP_FILE, RUNS = "sweep.yaml", "runs"

STOPPED_EARLY = "stopped_early"


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


# After these come a column for each swept setting, named by its dotted key, and two for each metric
# of each test set, such as NAME.psnr_db and NAME.best_psnr_db.
FIELDS = (
    _field("sweep", pa.string(), "The sweep's name."),
    _field("trial", pa.int64(), "Number of the trial, from 0, in the order of the sweep."),
    _field("run_id", pa.string(), "Id of the trial's run; joins the tables in runs/."),
    _field(
        "status",
        pa.string(),
        "finished, stopped_early (by the scheduler), failed, running, interrupted or pending.",
    ),
    _field("num_rounds", pa.int64(), "Rounds asked for.", "1"),
    _field("round_idx", pa.int64(), "Rounds done.", "1"),
    _field("evaluated_round_idx", pa.int64(), "The last evaluated round."),
    _field("loss", pa.float64(), "Local loss of the last evaluated round.", "1"),
    _field("test_set", pa.string(), "Test set of the scores in the next columns, the run's first."),
    *(
        _field(m.column, pa.float64(), f"{m.description} of that round, mean over clips.", m.unit)
        for m in METRICS.values()
    ),
    *(
        _field(f"best_{m.column}", pa.float64(), f"Best {m.label} of any round.", m.unit)
        for m in METRICS.values()
    ),
    _field("best_round_idx", pa.int64(), "Round with the highest PSNR."),
    _field("bicubic_psnr_db", pa.float64(), "PSNR of bicubic, mean over clips.", "dB"),
    _field(
        "rounds_s", pa.float64(), "Seconds of training, aggregation and scoring in all rounds.", "s"
    ),
    _field("attempts", pa.int64(), "Starts of the trial; more than 1 if it failed or was resumed."),
    _field("parent_run_id", pa.string(), "pbt: the run from whose state it continued; else null."),
    _field("from_round", pa.int64(), "pbt: the last round that is the parent's; else null."),
    _field("error", pa.string(), "Reason why a failed trial failed."),
)


@dataclass(frozen=True)
class Note:
    """What a trial adds to its run's folder, beside the run's own tables."""

    values: dict[str, Value]
    attempts: int
    """Number of starts."""
    tune_trial_id: str
    """The trial's id in the Ray Tune that started it last; another one after each resumption."""
    parent_run_id: str | None = None
    """The run from whose state this one continued (population-based training)."""
    from_round: int = 0
    """The last round of that run that this one took over."""
    member: str = ""
    """The same for all runs of a trial: its first `tune_trial_id`; empty in an older note."""
    ended: str = ""
    """`stopped_early` if the scheduler stopped the trial; else empty."""

    @property
    def trial(self) -> str:
        """What all runs of a trial share."""
        return self.member or self.tune_trial_id

    def write(self, folder: Path) -> None:
        """Write the note into a run's folder."""
        write_json(folder / "trial.json", asdict(self))

    @staticmethod
    def read(folder: Path) -> Note | None:
        """The note in a run's folder; None if there is none.

        Raises:
            FileError: the note is damaged.
        """
        path = folder / "trial.json"
        try:
            written = read_json(path)
            # An older version also noted the test sets.
            note = Note(**{k: v for k, v in written.items() if k != "test_sets"})
        except FileNotFoundError:
            return None
        except TypeError:
            raise FileError(path, "is damaged: it is no note of a trial") from None
        return note


def newest_runs(runs: Path) -> dict[str, Path]:
    """The run of each trial that has started, by `Note.trial`, in the order they started.

    With population-based training a trial has several runs; its last one is returned. A run with
    a damaged note is skipped, and named.
    """
    started = list[tuple[int, str, Path, Note]]()
    for folder in sorted(path.parent for path in runs.glob("*/trial.json")):
        with skipping(folder):
            note = Note.read(folder)
            if note is not None:
                time_ns = (folder / "config.yaml").stat().st_mtime_ns
                started.append((time_ns, folder.name, folder, note))
    newest = dict[str, tuple[int, Path]]()
    for *_, folder, note in sorted(started, key=lambda trial: trial[:2]):
        if note.from_round >= newest.get(note.trial, (0,))[0]:
            newest[note.trial] = note.from_round, folder
    return {trial: folder for trial, (_, folder) in newest.items()}


def require_scored(metric: str, config: ExperimentConfig) -> None:
    """Check that runs of a configuration score the metric that trials are compared by.

    Raises:
        UserError: the metric is not chosen, or no test set has its name.
    """
    wanted = METRICS.get(metric.rpartition("/")[2])
    if wanted is not None and wanted.package and wanted.name not in config.evaluation.metrics:
        raise UserError(
            f"metric = {metric}, but evaluation.metrics has no {wanted.name}; add it to `set`"
        )
    places = {name: absolute(name, "data.test") for name in config.data.test}
    # Names that are certain, or possible if the clips are not here.
    known = planned_names(config.data, {name: listed_clips(p) for name, p in places.items()})
    _, _, name = metric.rpartition("/")[0].partition("/")
    if name and name not in known:
        raise UserError(
            f"metric = {metric}, but no test set is called {name}{did_you_mean(name, known)} "
            f"(there are: {', '.join(known)})"
        )


class Scores(TypedDict):
    """What a trial reports of one evaluated round."""

    round_idx: int
    loss: float
    test: dict[str, dict[str, float]]
    """Means by test set: `{"Vid4": {"psnr_db": 24.9, "ssim": 0.77}}`. The first set is the one of
    `reported`."""


def history(folder: Path) -> list[Scores]:
    """The scores of each evaluated round of a run, in order."""
    return _history(checked_table(folder, "rounds"), checked_table(folder, "evaluations"))


def scores_of(event: RoundRecorded) -> Scores:
    """The scores of a round that was just evaluated, as `history` reads them from its tables."""
    rows = [score.row() for score in event.scores]
    loss = math.nan if event.loss is None else event.loss
    evaluations = pa.Table.from_pylist(rows, schema=SCHEMAS["evaluations"])
    return {"round_idx": event.round_idx, "loss": loss, "test": _means(evaluations)}


def reported(scores: Scores) -> dict[str, Any]:
    """Scores as Tune is told them: the first test set at the top, and those of each in `test`."""
    return {**next(iter(scores["test"].values())), **scores}


def _history(rounds: pa.Table, evaluations: pa.Table) -> list[Scores]:
    losses = rounds.select(["round_idx", "loss"]).to_pylist()
    loss = {row["round_idx"]: row["loss"] for row in losses}
    return [
        {
            "round_idx": round_idx.as_py(),
            "loss": math.nan if loss.get(round_idx.as_py()) is None else loss[round_idx.as_py()],
            "test": _means(scores),
        }
        for round_idx, scores in groups(evaluations, "round_idx")
        if round_idx.as_py() in loss
    ]


def _means(evaluations: pa.Table) -> dict[str, dict[str, float]]:
    """The means of a round by test set, without those of bicubic."""
    return {
        name: {key: value for key, value in mean_scores(own).items() if key in METRICS}
        for name, own in by_test_set(evaluations)
    }


def row_of(
    sweep: str, index: int, values: Mapping[str, Value], num_rounds: int, folder: Path
) -> dict[str, Any]:
    """A trial's row of `trials.parquet`, read from its run's folder, which may be missing.

    A trial whose files are damaged is `failed`, and its error names the file.
    """
    row: dict[str, Any] = {
        "sweep": sweep,
        "trial": index,
        "run_id": folder.name,
        "status": "pending",
        "num_rounds": num_rounds,
        "round_idx": 0,
        "attempts": 0,
        **values,
    }
    try:
        return row | _recorded(folder)
    except UserError as error:
        return row | {"status": "failed", "error": str(error)}


def _recorded(folder: Path) -> dict[str, Any]:
    """The columns of a trial's row that its run's files give."""
    row = dict[str, Any]()
    note = Note.read(folder)
    if note is None:
        return row
    row |= {"attempts": note.attempts, "parent_run_id": note.parent_run_id}
    row["from_round"] = note.from_round if note.parent_run_id else None
    run = read_run(folder)
    if run is None:
        return row
    status = run_status(folder)
    status = "interrupted" if status == "stopped" else status
    status = note.ended if status == "interrupted" and note.ended else status
    row |= {"status": status, "error": run["error"]}
    rounds, evaluations = (checked_table(folder, name) for name in ("rounds", "evaluations"))
    if not rounds.num_rows:
        return row
    row["round_idx"] = pc.max(rounds["round_idx"]).as_py()
    parts = ("train_s", "aggregate_s", "evaluate_s")
    row["rounds_s"] = sum(pc.sum(rounds[name]).as_py() or 0.0 for name in parts)
    evaluated = _history(rounds, evaluations)
    if not evaluated:
        return row
    sets = by_test_set(last_evaluation(evaluations))
    row["test_set"], of_first = sets[0]
    row["bicubic_psnr_db"] = mean_scores(of_first).get("bicubic_psnr_db")
    row |= {"loss": _finite(evaluated[-1]["loss"])}
    row["evaluated_round_idx"] = evaluated[-1]["round_idx"]
    for name in evaluated[-1]["test"]:
        of_set = [(e["round_idx"], e["test"][name]) for e in evaluated if name in e["test"]]
        scores = dict[str, float]()
        for column, value in of_set[-1][1].items():
            best = max if METRICS[column].higher_is_better else min
            scores[column] = value
            scores[f"best_{column}"] = best(s[column] for _, s in of_set if column in s)
        row |= {f"{name}.{column}": value for column, value in scores.items()}
        if name == row["test_set"]:
            row |= scores
            by_psnr = [(s["psnr_db"], -i) for i, s in of_set if "psnr_db" in s]
            row["best_round_idx"] = -max(by_psnr)[1] if by_psnr else None
    return row


def write_trials(path: Path, rows: Sequence[Mapping[str, Any]], swept: Iterable[str]) -> None:
    """Write `trials.parquet`: columns of `FIELDS`, of the swept settings and of the test sets."""
    fixed, swept = {field.name for field in FIELDS}, list(swept)
    columns = [*FIELDS]
    for key in swept:
        values = [row.get(key) for row in rows]
        columns.append(_field(key, _kind(values), "Swept setting."))
    of_sets = dict.fromkeys(key for row in rows for key in row if key not in (fixed | set(swept)))
    for key in of_sets:
        name, _, score = key.rpartition(".")
        which = "best of any round" if score.startswith("best_") else "last evaluated round"
        metric = METRICS.get(score.removeprefix("best_"))
        unit = metric.unit if metric else "1"
        columns.append(_field(key, pa.float64(), f"Mean of test set {name}, {which}.", unit))
    schema = pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})
    full = [{field.name: _as(row.get(field.name), field.type) for field in schema} for row in rows]
    write_parquet(path, pa.Table.from_pylist(full, schema=schema))


def read_trials(path: Path) -> pd.DataFrame:
    """The table of a sweep's `trials.parquet`.

    Raises:
        UserError: the file is missing or damaged, or a newer version has written it.
    """
    if not path.is_file():
        raise UserError(f"there is no sweep at {path.parent}; `fedvsr tune` makes one")
    table = read_parquet(path)
    version = int((table.schema.metadata or {}).get(b"schema_version", b"0"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}; this fedvsr reads {SCHEMA_VERSION}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def column_of(metric: str) -> str:
    """The column that holds a sweep's metric: `test/Vid4/psnr_db` is in `Vid4.psnr_db`."""
    return ".".join(metric.removeprefix("test/").rsplit("/", 1))


def _kind(values: Sequence[Value | None]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {bool}:
        return pa.bool_()
    if kinds and kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _as(value: Any, kind: pa.DataType) -> Any:
    # The values of one setting may be numbers and words, such as 4 and `reds4`.
    return str(value) if value is not None and pa.types.is_string(kind) else value


def _finite(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
