"""The results of a sweep's trials: read from the runs' tables, written as one row per trial."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TypedDict

import pandas as pd
import pyarrow as pa

from fedvsr.checked import read_parquet, write_parquet
from fedvsr.config import ExperimentConfig
from fedvsr.data.split import Split
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.files import replacing
from fedvsr.records import load_results, read_run
from fedvsr.runs.run import run_status
from fedvsr.tuning.space import Value

SCHEMA_VERSION = 1

# Names in a sweep's folder: its file, and the folder of its runs.
SWEEP_FILE, RUNS = "sweep.yaml", "runs"

HELD_OUT = "held_out"
STOPPED_EARLY = "stopped_early"
_SCORES: Final = ("psnr_db", "ssim")


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


# After these come a column for each swept setting, named by its dotted key, and four for each test
# set: NAME.psnr_db, NAME.ssim, NAME.best_psnr_db, NAME.best_ssim.
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
    _field("psnr_db", pa.float64(), "PSNR of that round, mean of all test clips.", "dB"),
    _field("ssim", pa.float64(), "SSIM of that round, mean of all test clips.", "1"),
    _field("best_psnr_db", pa.float64(), "Highest PSNR of any round.", "dB"),
    _field("best_ssim", pa.float64(), "Highest SSIM of any round.", "1"),
    _field("best_round_idx", pa.int64(), "Round with the highest PSNR."),
    _field(
        "bicubic_psnr_db",
        pa.float64(),
        "PSNR of bicubic enlargement, mean of the test clips.",
        "dB",
    ),
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
    test_sets: list[str]
    """The test set of each test clip, in order."""
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
        with replacing(folder / "trial.json") as aside:
            aside.write_text(json.dumps(asdict(self)))

    @staticmethod
    def read(folder: Path) -> Note | None:
        """The note in a run's folder; None if there is none.

        Raises:
            FileError: the note is damaged.
        """
        path = folder / "trial.json"
        try:
            note = Note(**json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):
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


def sets_of(config: ExperimentConfig, split: Split) -> list[str]:
    """The test set of each test clip: its store's name; `held_out` or `reds4` if held out."""
    stores = {str(Path(name).expanduser().resolve()): name for name in config.data.test}
    held_out = _held_out(config)
    return [
        Path(stores[clip.folder]).name if clip.folder in stores else held_out for clip in split.test
    ]


def set_names(config: ExperimentConfig) -> list[str]:
    """Names of the test sets of a configuration, as `sets_of` gives them."""
    own = [_held_out(config)] if config.data.videos or config.data.held_out else []
    return [*own, *(Path(name).name for name in config.data.test)]


def _held_out(config: ExperimentConfig) -> str:
    return "reds4" if config.data.held_out == "reds4" else HELD_OUT


class Scores(TypedDict):
    """What a trial reports of one evaluated round."""

    round_idx: int
    loss: float
    psnr_db: float
    ssim: float
    test: dict[str, dict[str, float]]
    """Means by test set: `{"vid4": {"psnr_db": 24.9, "ssim": 0.77}}`."""


def history(folder: Path, sets: Sequence[str]) -> list[Scores]:
    """The scores of each evaluated round of a run, in order.

    Args:
        folder: the run's folder.
        sets: the test set of each test clip, in order (see `sets_of`).
    """
    results = load_results(folder)
    rounds = results.rounds.dropna(subset=["psnr_db"])
    entries = list[Scores]()
    for row in rounds.to_dict("records"):
        scores = results.evaluations[results.evaluations["round_idx"] == row["round_idx"]]
        # If each client has its own network, the clips repeat for each client, in the same order.
        by_set = scores[list(_SCORES)].groupby([sets[i % len(sets)] for i in range(len(scores))])
        means = by_set.mean().to_dict("index")
        entries.append(
            {
                "round_idx": row["round_idx"],
                "loss": row["loss"],
                "psnr_db": row["psnr_db"],
                "ssim": row["ssim"],
                "test": {str(name): dict(mean) for name, mean in means.items()},
            }
        )
    return entries


def row_of(
    sweep: str, index: int, values: Mapping[str, Value], config: ExperimentConfig, folder: Path
) -> dict[str, Any]:
    """A trial's row of `trials.parquet`, read from its run's folder, which may be missing.

    A trial whose files are damaged is `failed`, and its error names the file.
    """
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
    row |= {"loss": _finite(last["loss"])}
    row |= {name: _finite(last[name]) for name in _SCORES}
    row["evaluated_round_idx"] = last["round_idx"]
    row["best_round_idx"] = best["round_idx"]
    row |= {f"best_{name}": max(entry[name] for entry in evaluated) for name in _SCORES}
    for name, scores in last["test"].items():
        for score in _SCORES:
            row[f"{name}.{score}"] = scores[score]
            row[f"{name}.best_{score}"] = max(e["test"][name][score] for e in evaluated)
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
        which = "highest of any round" if score.startswith("best_") else "last evaluated round"
        unit = "dB" if score.endswith("psnr_db") else "1"
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
    # The values of one setting may be numbers and words, such as 4 and `reds4`.
    return str(value) if value is not None and pa.types.is_string(kind) else value


def _finite(value: Any) -> float | None:
    return None if pd.isna(value) else float(value)
