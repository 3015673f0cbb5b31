"""Result tables: parquet files with versioned schemas in each run's folder.

    <run>/runs.parquet         one row: the run
    <run>/rounds.parquet       a row per round; round 0 is the network before training
    <run>/clients.parquet      a row per round and sampled client
    <run>/evaluations.parquet  a row per evaluated round, test clip and degradation
    <run>/partition.parquet    a row per clip that a client trains on
    <run>/faults.parquet       a row per failure during the run
    <run>/added.jsonl          rows of the last seconds, on their way to these files

Two runs with the same configuration and seed on the same kind of machine have bit-equal columns,
except for when, where and with which versions each was made (`run_id`, `*_at`, `executor`, `node`,
`slot`, versions), seconds and energy (`*_s`, `*_j`, `gpu_*`), restarts (`attempts`) and faults.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from fedvsr import stored
from fedvsr.checked import write_parquet
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.lookup import did_you_mean
from fedvsr.metrics import BICUBIC, METRICS

# Only `load_results` needs pandas, and pyarrow loads it there; `fedvsr list` and `show` stay quick.
if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 7

Row = Mapping[str, object]


def _field(name: str, kind: pa.DataType, description: str, unit: str = "") -> pa.Field:
    metadata = {"description": description, **({"unit": unit} if unit else {})}
    return pa.field(name, kind, metadata=metadata)


_IDENTITY = [
    _field("run_id", pa.string(), "Name of the run and of its folder."),
    _field("config_hash", pa.string(), "Hash of all settings that change numbers, with the seed."),
    _field("seed", pa.int64(), "Root seed of every random draw."),
    _field("fedvsr_version", pa.string(), "Version of fedvsr."),
    _field("git_commit", pa.string(), "Commit of the source tree; null for an installed wheel."),
    _field("num_overlap", pa.int64(), "Test clips that are also trained on; should be 0.", "1"),
    _field(
        "num_same_video",
        pa.int64(),
        "Test clips cut from videos of which other parts are trained on.",
        "1",
    ),
]
_ROUND = _field("round_idx", pa.int64(), "Round, from 1; 0 is the network before training.")


# What a mean in `runs` and `rounds` is over.
_TEST_SET = _field(
    "test_set",
    pa.string(),
    "Test set of the scores in this row, the run's first; null in an older record, whose scores "
    "are means over all sets.",
)


def _scores(of: str, bicubic: str = "") -> list[pa.Field]:
    """A column for each metric and, with `bicubic`, for that of bicubic enlargement."""
    own = [
        _field(m.column, pa.float64(), f"{m.description}, {of}; null if not scored.", m.unit)
        for m in METRICS.values()
    ]
    others = [
        _field(f"{BICUBIC}{m.column}", pa.float64(), f"{m.label} of {bicubic}.", m.unit)
        for m in METRICS.values()
    ]
    return [*own, *(others if bicubic else [])]


def _schema(*fields: pa.Field) -> pa.Schema:
    return pa.schema([*_IDENTITY, *fields], metadata={"schema_version": str(SCHEMA_VERSION)})


SCHEMAS: dict[str, pa.Schema] = {
    "runs": _schema(
        _field("name", pa.string(), "Name of the configuration."),
        _field("status", pa.string(), "running, finished, failed or interrupted."),
        _field("model", pa.string(), "Network."),
        _field("algorithm", pa.string(), "Federated algorithm."),
        _field("executor", pa.string(), "ray or serial."),
        _field("weights_source", pa.string(), "Weights of others that it started from, or null."),
        _field("num_params", pa.int64(), "Parameters of the network.", "1"),
        _field("num_rounds", pa.int64(), "Rounds that the configuration asks for.", "1"),
        _field("num_clients", pa.int64(), "Registered clients.", "1"),
        _field("num_train_clips", pa.int64(), "Clips that the clients train on.", "1"),
        _field("num_test_clips", pa.int64(), "Clips that are scored.", "1"),
        _TEST_SET,
        *_scores("of the last evaluation, mean over clips", "bicubic, mean over clips"),
        _field("started_at", pa.timestamp("us", "UTC"), "When the run was first started."),
        _field("updated_at", pa.timestamp("us", "UTC"), "When this row was written."),
        _field("device", pa.string(), "Device that clients trained on."),
        _field("versions", pa.string(), "Versions of Python and packages, as JSON."),
        _field("config", pa.string(), "The resolved configuration, as JSON."),
        _field("error", pa.string(), "Why a failed run failed."),
    ),
    "rounds": _schema(
        _ROUND,
        _field("num_sampled", pa.int64(), "Clients that trained.", "1"),
        _field("num_online", pa.int64(), "Clients that could be sampled.", "1"),
        _field("num_rejected", pa.int64(), "Sampled clients whose update was rejected.", "1"),
        _field("num_failed", pa.int64(), "Sampled clients that sent no update.", "1"),
        _field("num_upload_failures", pa.int64(), "Clients whose upload was lost.", "1"),
        _field("loss", pa.float64(), "Local loss, mean over the aggregated clients.", "1"),
        _field("vsr_loss", pa.float64(), "Part of `loss` that is the network's own loss.", "1"),
        _field("weights_hellinger", pa.float64(), "Hellinger distance from uniform weights.", "1"),
        _field("weights_deviation", pa.float64(), "Largest abs(K w - 1) of K weights w.", "1"),
        _TEST_SET,
        *_scores("mean over clips"),
        _field("download_bytes", pa.int64(), "Bytes sent to all clients.", "B"),
        _field("upload_bytes", pa.int64(), "Bytes sent back by all clients.", "B"),
        _field("epsilon", pa.float64(), "Differential privacy spent; null without noise.", "1"),
        _field(
            "gap_s",
            pa.float64(),
            "Idle time between the previous round's last update and this round's first step.",
            "s",
        ),
        _field("train_s", pa.float64(), "Time from the first task to the last report.", "s"),
        _field("aggregate_s", pa.float64(), "Time to weigh and sum the updates.", "s"),
        _field("aggregate_j", pa.float64(), "Energy of processors in `aggregate_s`.", "J"),
        _field("evaluate_s", pa.float64(), "Time to score the test clips.", "s"),
    ),
    "clients": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client, from 0."),
        _field("position", pa.int64(), "Position in the round's sample, from 0."),
        _field("num_samples", pa.int64(), "Training samples drawn.", "1"),
        _field("num_steps", pa.int64(), "Optimiser steps.", "1"),
        _field("loss", pa.float64(), "Mean local loss.", "1"),
        _field("vsr_loss", pa.float64(), "Part of `loss` that is the network's own loss.", "1"),
        _field("inverse_loss", pa.float64(), "1 / `loss`: FedVSR's I_i.", "1"),
        _field("weight", pa.float64(), "Weight in the aggregate; null without weights.", "1"),
        _field("first_loss", pa.float64(), "Loss of the first batch, before any step.", "1"),
        _field("lr", pa.float64(), "Mean learning rate.", "1"),
        _field("update_norm", pa.float64(), "L2 distance from the global parameters.", "1"),
        _field("upload_bytes", pa.int64(), "Bytes sent to the server, compressed if set.", "B"),
        _field("rejected", pa.bool_(), "Whether it was left out; loss or update not finite."),
        _field("upload_failed", pa.bool_(), "Whether its upload was lost after its training."),
        _field("attempts", pa.int64(), "Starts of its task; over 1 after a failure.", "1"),
        _field("node", pa.string(), "Ray node that trained it; null without Ray."),
        _field("slot", pa.int64(), "Slot that it ran in, from 0; null without Ray."),
        _field("started_s", pa.float64(), "Time from the round's first task to its start.", "s"),
        _field("train_s", pa.float64(), "Time of local training.", "s"),
        _field("input_wait_s", pa.float64(), "Part of `train_s` spent waiting for samples.", "s"),
        _field("energy_j", pa.float64(), "Energy of its GPU or processors while it trained.", "J"),
        _field("gpu_memory_bytes", pa.int64(), "Peak GPU memory of its tensors.", "B"),
        _field("gpu_utilisation", pa.float64(), "Share of the time that its GPU computed.", "1"),
    ),
    "evaluations": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client whose network is scored; null for the global one."),
        _field("test_set", pa.string(), "Test set of the clip: REDS4, Vid4, held-out or a folder."),
        _field("clip_id", pa.string(), "Test clip."),
        _field(
            "degradation",
            pa.string(),
            "How its low-resolution frames were made: bi, bd or a name of `data.degradation`; null "
            "if unknown, as in an older record.",
        ),
        _field("num_frames", pa.int64(), "Frames scored.", "1"),
        *_scores("mean over frames", "bicubic enlargement"),
    ),
    "partition": _schema(
        _field("client_id", pa.int64(), "Client, from 0."),
        _field("clip_id", pa.string(), "A clip that the client holds."),
        _field("label", pa.string(), "Kind of content, e.g. its action class."),
        _field(
            "degradation",
            pa.string(),
            "How its low-resolution frames were made; null in an older record.",
        ),
        _field("num_frames", pa.int64(), "Frames of the clip.", "1"),
        _field("height", pa.int64(), "Height of the ground truth.", "px"),
        _field("width", pa.int64(), "Width of the ground truth.", "px"),
        _field("sha256", pa.string(), "SHA-256 of the ground truth; null for an old store."),
    ),
    "faults": _schema(
        _ROUND,
        _field("client_id", pa.int64(), "Client whose work failed; null for the driver."),
        _field("attempt", pa.int64(), "Attempt that failed, from 1.", "1"),
        _field(
            "kind",
            pa.string(),
            "died, node_lost, out_of_memory, timeout, raised, not_finite, driver, checkpoint, "
            "table or logger.",
        ),
        _field("final", pa.bool_(), "Whether the work was given up; otherwise it was retried."),
        _field("node", pa.string(), "Ray node; null if unknown."),
        _field("message", pa.string(), "What happened, in one line."),
        _field("traceback", pa.string(), "Traceback, if any."),
        _field("lost_s", pa.float64(), "Time of the work that was lost.", "s"),
    ),
}
# The table that `fedvsr evaluate --out` writes. It belongs to no run, so it is not in SCHEMAS.
SCORES = pa.schema(
    [
        _field("checkpoint", pa.string(), "Id of the run, or the file of weights."),
        _field("origin", pa.string(), "What the weights are, e.g. those after round 20."),
        _field("scale", pa.int64(), "Enlargement of height and width.", "1"),
        _field("device", pa.string(), "Device that computed."),
        _field("precision", pa.string(), "fp32, bf16 or fp16."),
        *(_IDENTITY[3:5]),
        *(f for f in list(SCHEMAS["evaluations"])[len(_IDENTITY) + 2 :]),
    ],
    metadata={"schema_version": str(SCHEMA_VERSION)},
)
_TIMES = ("started_at", "updated_at")
GROWING = ("clients", "evaluations", "rounds", "faults")
"""Tables whose newest rows may be in the journal."""


def write_scores(path: Path, rows: Sequence[Row]) -> None:
    """Write rows of `SCORES` to a parquet file."""
    write_parquet(path, pa.Table.from_pylist([dict(row) for row in rows], schema=SCORES))


@dataclass(frozen=True)
class Results:
    """The tables of one run or more as pandas tables; a row names its run by `run_id`."""

    runs: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame
    evaluations: pd.DataFrame
    partition: pd.DataFrame
    faults: pd.DataFrame


Columns = Mapping[str, Sequence[str] | None]


def load_results(
    folder: str | Path = "results",
    *,
    tables: Sequence[str] | Columns | None = None,
    runs: Sequence[str] | None = None,
) -> Results:
    """Runs at or below a folder as pandas tables, e.g. `results.rounds`.

    Each table holds the rows of all runs; `run_id` joins them. `run_folders` says which folders
    count. A run below `folder` with a damaged or foreign table is skipped: a line on standard error
    (logger `fedvsr`) names the file.

    Args:
        folder: the folder.
        tables: names of the tables to read, or a mapping of them to the columns to read (None:
            all); `run_id` is always read. Other tables are empty. Default: all tables.
        runs: ids of the runs to read. Files of other runs are not opened. Default: all runs.

    Raises:
        UserError: the folder is missing, its own tables are damaged or of a newer version, or it
            lacks a run, table or column of that name.
    """
    columns = _columns(tables)
    found = read_results(run_folders(Path(folder), runs), Path(folder), columns, runs)
    if missing := set(runs or ()) - found[1].keys():
        name = min(missing)
        raise UserError(f"{folder} has no run {name!r}{did_you_mean(name, _names(Path(folder)))}")
    return found[0]


def _columns(tables: Sequence[str] | Columns | None) -> Columns:
    """The columns to read by table, after a check that they exist; None: all of a table."""
    if isinstance(tables, str):
        tables = [tables]
    if not isinstance(tables, Mapping):
        return dict.fromkeys(_known(SCHEMAS if tables is None else tables, SCHEMAS, "table"))
    for name in _known(tables, SCHEMAS, "table"):
        _known(tables[name] or (), SCHEMAS[name].names, f"column of {name}")
    return {
        name: None if own is None else list(dict.fromkeys(["run_id", *own]))
        for name, own in tables.items()
    }


def _known(names: Iterable[str], known: Iterable[str], what: str) -> list[str]:
    known = list(known)
    for name in names:
        if name not in known:
            raise UserError(f"there is no {what} {name!r}{did_you_mean(name, known)}")
    return list(names)


def read_results(
    folders: Sequence[Path],
    asked: Path,
    columns: Columns | None = None,
    runs: Sequence[str] | None = None,
) -> tuple[Results, dict[str, Path]]:
    """The tables of runs, and the folder of each run by its id.

    Args:
        folders: the folders of the runs.
        asked: the folder that the user named; its own tables are never skipped.
        columns: the tables to read, each with its columns (None: all). Default: all tables.
        runs: ids of the runs to read (default: all).

    Raises:
        UserError: the tables of `asked` itself cannot be read.
    """
    columns = dict.fromkeys(SCHEMAS) if columns is None else columns
    parts = {name: [schema.empty_table()] for name, schema in SCHEMAS.items()}
    for name, own in columns.items():
        if own is not None:
            parts[name] = [parts[name][0].select(own)]
    folder_of = dict[str, Path]()
    for folder in folders:
        with skipping(folder, unless=folder == asked):
            tables = run_tables(folder, columns)
            run_ids = tables["runs"]["run_id"].to_pylist()
            if known := next((folder_of[i] for i in run_ids if i in folder_of), None):
                raise FileError(folder / "runs.parquet", f"is of the run in {known}: a copy of it")
            folder_of |= {i: folder for i in run_ids if runs is None or i in runs}
            for name in columns:
                table = tables[name]
                if runs is not None and not set(run_ids) <= set(runs):
                    table = table.filter(pc.is_in(table["run_id"], pa.array(runs, pa.string())))
                parts[name].append(table)
    frames = {name: pa.concat_tables(tables).to_pandas() for name, tables in parts.items()}
    return Results(**frames), folder_of


def run_folders(folder: Path, runs: Sequence[str] | None = None) -> list[Path]:
    """The folders at or below `folder` that hold the tables of a run.

    A folder with the tables of several runs, such as results/study-small, counts only if it is
    `folder` itself. Hidden folders hold runs on their way here and do not count. A folder below
    whose `runs.parquet` is damaged is skipped, and named.

    Args:
        folder: the folder.
        runs: ids of the runs that count, which are their folders' names below `folder`
            (default: all).

    Raises:
        UserError: the folder is missing.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}; `fedvsr run` writes to results/")
    folders = list[Path]()
    for path in sorted(folder.rglob("runs.parquet")):
        if path.parent == folder:
            folders.append(folder)
            continue
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if runs is not None and path.parent.name not in runs:
            continue
        with skipping(path.parent):
            # The file's last bytes say how many rows it has; who reads the run checks the others.
            if stored.num_rows(path) == 1:
                folders.append(path.parent)
    return folders


def _names(folder: Path) -> list[str]:
    return [path.parent.name for path in folder.rglob("runs.parquet")]


def run_tables(
    folder: Path, columns: Columns | None = None, since: int | None = None
) -> dict[str, pa.Table]:
    """Tables of a folder by name, after a check that they are whole and belong together.

    Args:
        folder: the folder.
        columns: the tables to read, each with its columns (None: all); `run_id` of `runs` is read
            in any case. Default: all tables.
        since: of the tables that grow by rounds, read only the rows of this round and later ones.

    Raises:
        UserError: one is damaged, of another run, or of a newer version.
    """
    wanted: Columns = {
        "runs": ["run_id"],
        **(dict.fromkeys(SCHEMAS) if columns is None else columns),
    }
    tables = {name: checked_table(folder, name, own, since) for name, own in wanted.items()}
    own = set(tables["runs"]["run_id"].to_pylist())
    for name, table in tables.items():
        foreign = set(pc.unique(table["run_id"]).to_pylist()) - own
        if foreign or None in own:
            raise FileError(
                folder / f"{name}.parquet",
                f"has rows of another run: {foreign.pop()}" if foreign else "has no run_id",
            )
    configs = tables["runs"]["config"] if "config" in tables["runs"].column_names else pa.array([])
    for config in configs.to_pylist():
        try:
            known = config is None or isinstance(json.loads(config), dict)
        except ValueError:
            known = False
        if not known:
            raise FileError(folder / "runs.parquet", "has a configuration that is not JSON")
    return tables


def checked_table(
    folder: Path, name: str, columns: Sequence[str] | None = None, since: int | None = None
) -> pa.Table:
    """`read_table`, with every value checked.

    Raises:
        FileError: the file is damaged or no table of fedvsr.
        UserError: a newer version wrote the file.
    """
    try:
        table = read_table(folder, name, columns, since)
        table.validate(full=True)
    except (UserError, FileNotFoundError):
        raise
    except (OSError, ValueError, TypeError, pa.ArrowException) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileError(folder / f"{name}.parquet", f"is damaged: {reason}") from error
    return table


def last_evaluations(folder: Path) -> tuple[pa.Table, pa.Table]:
    """Columns of `rounds` for a line about a run, and the scores since the last that has a number.

    Raises:
        UserError: see `checked_table`.
    """
    rounds = checked_table(folder, "rounds", ["run_id", "round_idx", "psnr_db", "gap_s", "train_s"])
    scored = rounds.filter(pc.is_finite(rounds["psnr_db"]))
    # The folder may hold the tables of several runs.
    # Not by pyarrow's `group_by`, which loads pandas. Rounds are in order.
    last = dict(zip(scored["run_id"].to_pylist(), scored["round_idx"].to_pylist(), strict=True))
    since = min(last.values(), default=None)
    return rounds, checked_table(folder, "evaluations", since=since)


def read_run(folder: Path) -> dict[str, Any] | None:
    """A run's own row, or None if the folder holds no run."""
    rows = read_runs(folder)
    return rows[0] if rows else None


def read_runs(folder: Path) -> list[dict[str, Any]]:
    """The rows of a folder's `runs.parquet`: one, or several of collected tables; empty if none."""
    table = checked_table(folder, "runs")
    # pyarrow loads pandas to convert times that have a zone, so the zone is added afterwards.
    for name in _TIMES:
        naive = table[name].cast(pa.timestamp("us"))
        table = table.set_column(table.schema.get_field_index(name), name, naive)
    rows: list[dict[str, Any]] = table.to_pylist()
    for row in rows:
        row |= {name: row[name].replace(tzinfo=timezone.utc) for name in _TIMES if row[name]}
    return rows


def read_table(
    folder: Path, name: str, columns: Sequence[str] | None = None, since: int | None = None
) -> pa.Table:
    """A run's table in the newest schema: columns that an older file lacks are null.

    Rows of the run's journal that are not in the table's files yet are included.

    Args:
        folder: the run's.
        name: the table.
        columns: those to read (default: all).
        since: of a growing table, read only the rows of this round and later ones. Of a file with
            many rows, the others are not read, and not compared with the file's SHA-256.

    Returns:
        The table; empty if the run has no such file.

    Raises:
        DamagedError: the file is not as it was written.
        UserError: a newer version wrote the file.
    """
    schema = SCHEMAS[name]
    if name in GROWING:
        return stored.read_growing(folder, name, schema, columns, since)
    return stored.read_fixed(folder, name, schema, columns)
