"""Reads result tables: parquet files with versioned schemas in each run's folder.

    <run>/runs.parquet         one row: the run
    <run>/rounds.parquet       a row per round; round 0 is the network before training
    <run>/clients.parquet      a row per round and sampled client
    <run>/evaluations.parquet  a row per evaluated round, test clip and degradation
    <run>/partition.parquet    a row per clip that a client trains on
    <run>/faults.parquet       a row per failure during the run
    <run>/added.jsonl          rows of the last seconds, on their way to these files

`fedvsr.schemas` says what each column is.
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
from fedvsr.errors import FileError, UserError, skipping
from fedvsr.lookup import did_you_mean
from fedvsr.schemas import GROWING, SCHEMAS

# Only `load_results` needs pandas, and pyarrow loads it there; `fedvsr list` and `show` stay quick.
if TYPE_CHECKING:
    import pandas as pd

_TIMES = ("started_at", "updated_at")


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
