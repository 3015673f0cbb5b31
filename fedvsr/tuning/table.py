"""What a sweep's trials came to: read from the runs' own tables, written as one row a trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.records import load_results, read_run
from fedvsr.runs.run import run_status
from fedvsr.tuning.space import Value

SCHEMA_VERSION = 1

# In a sweep's folder: the sweep itself, and the folder of the runs.
SWEEP_FILE, RUNS = "sweep.yaml", "runs"

HELD_OUT = "held_out"
_SCORES = ("psnr_db", "ssim")


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


# Behind these stand a column for every swept setting, by its dotted key, and four for every test
# set: NAME.psnr_db, NAME.ssim, NAME.best_psnr_db, NAME.best_ssim.
FIELDS = (
    _field("sweep", pa.string(), "The sweep's name."),
    _field("trial", pa.int64(), "From 0, in the order of the sweep."),
    _field("run_id", pa.string(), "Of the trial's run; joins the tables in runs/."),
    _field(
        "status",
        pa.string(),
        "finished, stopped_early (by the scheduler), failed, running, interrupted or pending.",
    ),
    _field("num_rounds", pa.int64(), "Rounds asked for.", "1"),
    _field("round_idx", pa.int64(), "Rounds done.", "1"),
    _field("evaluated_round_idx", pa.int64(), "The last evaluated round."),
    _field("loss", pa.float64(), "Local loss of that round.", "1"),
    _field("psnr_db", pa.float64(), "Of that round, mean of all test clips.", "dB"),
    _field("ssim", pa.float64(), "Of that round, mean of all test clips.", "1"),
    _field("best_psnr_db", pa.float64(), "Highest of any round.", "dB"),
    _field("best_ssim", pa.float64(), "Highest of any round.", "1"),
    _field("best_round_idx", pa.int64(), "Round of the highest PSNR."),
    _field("bicubic_psnr_db", pa.float64(), "Bicubic enlargement of the test clips.", "dB"),
    _field("rounds_s", pa.float64(), "Training, aggregation and scoring of all rounds.", "s"),
    _field("attempts", pa.int64(), "Starts of the trial; over 1 where it failed or was resumed."),
    _field("parent_run_id", pa.string(), "pbt: the run whose state it went on from; else null."),
    _field("from_round", pa.int64(), "pbt: after which round; those before are the parent's."),
    _field("error", pa.string(), "Why a failed trial failed."),
)


@dataclass(frozen=True)
class Note:
    """What a trial leaves in its run's folder, beside the run's own tables."""

    values: dict[str, Value]
    test_sets: list[str]
    """The test set of each test clip, in order."""
    attempts: int
    """Starts."""
    tune_trial_id: str
    parent_run_id: str | None = None
    """The run whose state this one went on from (population-based training)."""
    from_round: int = 0
    """After which of its rounds."""

    def write(self, folder: Path) -> None:
        """Into the run's folder."""
        with replacing(folder / "trial.json") as aside:
            aside.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Note | None:
        """From a run's folder; None where no trial has left one."""
        try:
            return Note(**json.loads((folder / "trial.json").read_text()))
        except FileNotFoundError:
            return None


def newest_runs(runs: Path) -> dict[str, Path]:
    """The run of each trial that has begun, by Tune's trial id, in the order they began.

    In population-based training a trial has several, each going on from another's state: the last.
    """
    found = dict[str, tuple[int, Path]]()
    folders = [path.parent for path in runs.glob("*/trial.json")]
    folders.sort(key=lambda folder: ((folder / "config.yaml").stat().st_mtime_ns, folder.name))
    for folder in folders:
        note = Note.read(folder)
        assert note is not None
        if note.from_round >= found.get(note.tune_trial_id, (0,))[0]:
            found[note.tune_trial_id] = note.from_round, folder
    return {tune_id: folder for tune_id, (_, folder) in found.items()}


def sets_of(config: ExperimentConfig, split: Split) -> list[str]:
    """The name of each test clip's set: the store's, or `held_out`, or `reds4` for those."""
    stores = {str(Path(name).expanduser().resolve()): name for name in config.data.test}
    held_out = "reds4" if config.data.held_out == "reds4" else HELD_OUT
    return [
        Path(stores[clip.folder]).name if clip.folder in stores else held_out for clip in split.test
    ]


def history(folder: Path, sets: Sequence[str]) -> list[dict[str, Any]]:
    """Of every evaluated round of a run: `round_idx`, `loss`, `psnr_db`, `ssim`, and by set.

    `test` holds the means by set: `{"vid4": {"psnr_db": 24.9, "ssim": 0.77}}`.
    """
    results = load_results(folder)
    rounds = results.rounds.dropna(subset=["psnr_db"])
    found = list[dict[str, Any]]()
    for row in rounds.to_dict("records"):
        scores = results.evaluations[results.evaluations["round_idx"] == row["round_idx"]]
        # Where each client has a network, the clips come once a client, in the same order.
        by_set = scores[list(_SCORES)].groupby([sets[i % len(sets)] for i in range(len(scores))])
        means = by_set.mean().to_dict("index")
        entry = {name: row[name] for name in ("round_idx", "loss", *_SCORES)}
        found.append({**entry, "test": {str(name): dict(mean) for name, mean in means.items()}})
    return found


def row_of(
    sweep: str, index: int, values: Mapping[str, Value], config: ExperimentConfig, folder: Path
) -> dict[str, Any]:
    """A trial's row, from its run's folder, which may not be there yet."""
    row: dict[str, Any] = {
        "sweep": sweep,
        "trial": index,
        "run_id": folder.name,
        "status": "pending",
        "num_rounds": config.federation.num_rounds,
        "round_idx": 0,
        "attempts": 0,
        **values,
    }
    note = Note.read(folder)
    if note is None:
        return row
    row |= {"attempts": note.attempts, "parent_run_id": note.parent_run_id}
    row["from_round"] = note.from_round if note.parent_run_id else None
    run = read_run(folder)
    if run is None:
        return row
    status = run_status(folder)
    row |= {"status": "interrupted" if status == "stopped" else status, "error": run["error"]}
    results = load_results(folder)
    if results.rounds.empty:
        return row
    evaluated = history(folder, note.test_sets)
    row["round_idx"] = int(results.rounds["round_idx"].max())
    seconds = results.rounds[["train_s", "aggregate_s", "evaluate_s"]]
    row["rounds_s"] = float(seconds.fillna(0).to_numpy().sum())
    row["bicubic_psnr_db"] = _finite(results.evaluations["bicubic_psnr_db"].mean())
    if not evaluated:
        return row
    last, best = evaluated[-1], max(evaluated, key=lambda entry: float(entry["psnr_db"]))
    row |= {name: _finite(last[name]) for name in ("loss", *_SCORES)}
    row["evaluated_round_idx"] = last["round_idx"]
    row["best_round_idx"] = best["round_idx"]
    row |= {f"best_{name}": max(entry[name] for entry in evaluated) for name in _SCORES}
    for name, scores in last["test"].items():
        for score in _SCORES:
            row[f"{name}.{score}"] = scores[score]
            row[f"{name}.best_{score}"] = max(e["test"][name][score] for e in evaluated)
    return row


def write_trials(path: Path, rows: Sequence[Mapping[str, Any]], swept: Iterable[str]) -> None:
    """Write `trials.parquet`: `FIELDS`, then the swept settings, then the test sets."""
    fixed, swept = {field.name for field in FIELDS}, list(swept)
    columns = [*FIELDS]
    for key in swept:
        values = [row.get(key) for row in rows]
        columns.append(_field(key, _kind(values), "Swept setting."))
    of_sets = dict.fromkeys(key for row in rows for key in row if key not in (fixed | set(swept)))
    for key in of_sets:
        name, _, score = key.rpartition(".")
        which = "highest of any round" if score.startswith("best_") else "last evaluated round"
        unit = "dB" if score.endswith("psnr_db") else "1"
        columns.append(_field(key, pa.float64(), f"Mean of test set {name}, {which}.", unit))
    schema = pa.schema(columns, metadata={"schema_version": str(SCHEMA_VERSION)})
    full = [{field.name: _as(row.get(field.name), field.type) for field in schema} for row in rows]
    with replacing(path) as aside:
        pq.write_table(pa.Table.from_pylist(full, schema=schema), aside)


def read_trials(path: Path) -> pd.DataFrame:
    """A sweep's `trials.parquet`.

    Raises:
        UserError: it is not there, or was written by a newer version.
    """
    if not path.is_file():
        raise UserError(f"there is no sweep at {path.parent}; `fedvsr tune` makes one")
    table = pq.ParquetFile(path).read()
    version = int((table.schema.metadata or {}).get(b"schema_version", b"0"))
    if not 1 <= version <= SCHEMA_VERSION:
        raise UserError(f"{path} has schema version {version}; this fedvsr reads {SCHEMA_VERSION}")
    frame: pd.DataFrame = table.to_pandas()
    return frame


def column_of(metric: str) -> str:
    """The column that holds a sweep's metric: `test/vid4/psnr_db` is in `vid4.psnr_db`."""
    return ".".join(metric.removeprefix("test/").rsplit("/", 1))


def _kind(values: Sequence[Value | None]) -> pa.DataType:
    kinds = {type(value) for value in values if value is not None}
    if kinds and kinds <= {bool}:
        return pa.bool_()
    if kinds and kinds <= {int}:
        return pa.int64()
    return pa.float64() if kinds <= {int, float} else pa.string()


def _as(value: Any, kind: pa.DataType) -> Any:
    # A setting whose values are numbers and words, such as a list of clips or `reds4`.
    return str(value) if value is not None and pa.types.is_string(kind) else value


def _finite(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
