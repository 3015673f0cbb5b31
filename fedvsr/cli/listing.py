"""The commands `list` and `rm`, for many runs. `list` reads parquet through pyarrow alone."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.table import Table
from rich.text import Text

from fedvsr.cli import completion
from fedvsr.cli.common import OutOption, print_wide, say
from fedvsr.errors import UserError, skipping
from fedvsr.run_names import find_folder

if TYPE_CHECKING:
    import pyarrow as pa

Status = Literal["running", "finished", "failed", "interrupted", "stopped"]
Row = dict[str, Any]

_UNITS = {"h": "hours", "d": "days", "w": "weeks"}
# What --json prints of a run, beside its folder and its sweep.
_KEYS = (
    "run_id",
    "status",
    "model",
    "algorithm",
    "seed",
    "last_round",
    "num_rounds",
    "test_set",
    "psnr_db",
    "bicubic_psnr_db",
    "started_at",
    "updated_at",
    "tags",
    "note",
)


def list_runs(
    status: Annotated[
        Status | None, typer.Option("--status", help="Only runs with this status.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            metavar="NAME",
            help="Only runs of this network.",
            autocompletion=completion.models,
        ),
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(
            "--algorithm",
            metavar="NAME",
            help="Only runs of this algorithm.",
            autocompletion=completion.algorithms,
        ),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag", metavar="TAG", help="Only runs with this tag; repeatable: with all of them."
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="DATE|AGE",
            help="Only runs that began since a date (2026-11-27), or within an age (12h, 3d, 2w).",
        ),
    ] = None,
    sort: Annotated[
        Literal["started", "psnr", "gain"],
        typer.Option("--sort", help="Order: the newest, or the best, last."),
    ] = "started",
    trials: Annotated[
        bool, typer.Option("--all", help="Also each trial of a sweep, which else is one line.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print a JSON list of runs.")] = False,
    out: OutOption = Path("results"),
) -> None:
    """List the runs in DIR, each with the means of its first test set; the gain is over bicubic."""
    from fedvsr.records import run_folders

    begin = _begin(since) if since is not None else None
    runs = list[Row]()
    for folder in run_folders(out):
        with skipping(folder):
            runs += _rows(folder, out)
    found = bool(runs)
    chosen = {"status": status, "model": model, "algorithm": algorithm}
    for key, value in chosen.items():
        runs = [run for run in runs if value is None or run[key] == value]
    runs = [run for run in runs if {*(tags or ())} <= {*run["tags"]}]
    runs = [run for run in runs if not begin or (run["started_at"] and run["started_at"] >= begin)]
    # Runs without the number come first.
    runs.sort(key=lambda run: (run[_SORTED[sort]] is not None, run[_SORTED[sort]]))
    if as_json:
        typer.echo(json.dumps([_as_json(run) for run in runs], indent=1))
    elif not runs:
        say("no run fits" if found else f"no runs under {out}/ yet; `fedvsr run` makes one")
    else:
        _print(runs, trials)


_SORTED = {"started": "started_at", "psnr": "psnr_db", "gain": "gain_db"}


def remove(
    runs: Annotated[
        list[str],
        typer.Argument(metavar="RUN...", help="Runs to delete.", autocompletion=completion.runs),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    out: OutOption = Path("results"),
) -> None:
    """Delete runs with all their files. A run that a process executes is refused."""
    from fedvsr.runs.run import locked

    folders = list(dict.fromkeys(find_folder(name, out) for name in runs))
    if not yes:
        for folder in folders:
            size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
            say(f"{folder}: {size / 1e6:,.1f} MB")
        if not typer.confirm(f"delete {'this run' if len(folders) == 1 else 'these runs'}?"):
            say("nothing is deleted")
            raise typer.Exit(1)
    for folder in folders:
        with locked(folder):
            # These first: without them, a folder that is half deleted is taken for no run.
            for name in ("runs.parquet", "config.yaml"):
                (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder)
        say(f"{folder} is deleted")


def _begin(since: str) -> datetime:
    """The moment that --since names.

    Raises:
        UserError: it names none.
    """
    if match := re.fullmatch(r"(\d{1,4})([hdw])", since):
        age = timedelta(**{_UNITS[match[2]]: int(match[1])})
        return datetime.now(timezone.utc) - age
    try:
        return datetime.fromisoformat(since).astimezone()
    except ValueError:
        raise UserError(
            f"--since {since}: write a date, such as 2026-11-27, or an age, such as 12h, 3d or 2w"
        ) from None


def _as_json(run: Row) -> Row:
    """A run's row without what JSON does not have."""
    row = {key: run[key] for key in ("folder", "sweep", *_KEYS)}
    for key, value in row.items():
        if isinstance(value, datetime):
            row[key] = value.isoformat()
        elif isinstance(value, float) and not math.isfinite(value):
            row[key] = None
    return row


def _print(runs: list[Row], trials: bool) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("run", "status", "model", "algorithm"):
        table.add_column(name, no_wrap=True)
    for name in ("seed", "rounds"):
        table.add_column(name, justify="right")
    table.add_column("test set", no_wrap=True)
    for name in ("RGB PSNR dB", "gain dB"):
        table.add_column(name, justify="right")
    any_tags = any(run["tags"] for run in runs if trials or not run["sweep"])
    if any_tags:
        table.add_column("tags", no_wrap=True)
    sweeps = dict[str, list[Row]]()
    for run in runs:
        if run["sweep"] and not trials:
            sweeps.setdefault(run["sweep"], []).append(run)
            continue
        table.add_row(
            Text(str(run["run_id"])),
            Text(str(run["status"])),
            Text(str(run["model"])),
            Text(str(run["algorithm"])),
            str(run["seed"]),
            f"{run['last_round']}/{run['num_rounds']}",
            Text(str(run["test_set"] or "")),
            _number(run["psnr_db"]),
            _number(run["gain_db"], "+"),
            *([Text(", ".join(run["tags"]))] if any_tags else []),
        )
    if table.rows:
        print_wide(table)
    for sweep, own in sweeps.items():
        states = Counter(str(run["status"]) for run in own)
        counts = ", ".join(f"{count} {state}" for state, count in states.most_common())
        say(f"sweep {sweep}: {counts}; `fedvsr tune-report {sweep}` shows its trials")


def _number(value: float | None, sign: str = "") -> str:
    """A number of decibels; empty for the difference of two scores without an error."""
    return "" if value is None or math.isnan(value) else f"{value:{sign}.2f}"


def _sweep_of(folder: Path, out: Path) -> str | None:
    """The folder of the sweep that a run is a trial of, if it is one."""
    above = (parent for parent in folder.parents if parent.is_relative_to(out) and parent != out)
    return next((str(parent) for parent in above if (parent / "sweep.yaml").is_file()), None)


def _rows(folder: Path, out: Path) -> list[Row]:
    """The rows of a folder's runs, each with its `last_round`, `status` and last known scores."""
    import pyarrow.compute as pc

    from fedvsr.labels import FILE, Labels, read_labels
    from fedvsr.records import checked_table, last_evaluations, read_runs
    from fedvsr.runs.run import run_status

    rounds, evaluations = last_evaluations(folder)
    rows, labels = read_runs(folder), Labels()
    with skipping(folder / FILE):
        labels = read_labels(folder)
    run_ids = checked_table(folder, "runs", ["run_id"])["run_id"]
    # pyarrow loads pandas to compare with a Python value, so the values stay pyarrow's.
    for row, run_id in zip(rows, run_ids, strict=True):
        own = [t.filter(pc.equal(t["run_id"], run_id)) for t in (rounds, evaluations)]
        row["last_round"] = pc.max(own[0]["round_idx"]).as_py() or 0
        row |= _last_scores(*own)
        psnr_db, bicubic_psnr_db = row["psnr_db"], row["bicubic_psnr_db"]
        is_scored = psnr_db is not None and bicubic_psnr_db is not None
        row["gain_db"] = psnr_db - bicubic_psnr_db if is_scored else None
        row |= {"folder": str(folder), "sweep": _sweep_of(folder, out)}
        row |= {"tags": list(labels.tags), "note": labels.note}
        if len(rows) == 1:
            # Collected tables of several runs have no process behind them.
            row["status"] = run_status(folder)
    return rows


def _last_scores(rounds: pa.Table, evaluations: pa.Table) -> Mapping[str, object]:
    """The first test set, its RGB PSNR in the last round that has a number, and bicubic's.

    The run's own row is older while a run works, and after it was killed.
    """
    import pyarrow.compute as pc

    from fedvsr.means import headline

    scored = rounds.filter(pc.invert(pc.is_nan(rounds["psnr_db"])))
    last = pc.max(scored["round_idx"])
    if not last.is_valid:
        return {"psnr_db": None}
    return headline(evaluations.filter(pc.equal(evaluations["round_idx"], last)))
