"""Follow a run from outside, even from another machine, by reading its tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pandas as pd

from fedvsr.errors import UserError
from fedvsr.inference.scores import ClipScore
from fedvsr.metrics import columns
from fedvsr.records import run_tables
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.pace import STARTING_S, patience_s, round_s, silence_s
from fedvsr.runs.rows import num_absent
from fedvsr.runs.run import run_status

# Columns of `rounds` that say why fewer clients are in the sum than were sampled.
_SHORT = ("num_upload_failures", "num_rejected", "num_failed")


def watch(
    folder: Path, poll_s: float = 1.0, sleep: Callable[[float], None] = time.sleep
) -> Iterator[Event]:
    """Yield a run's events from its tables, from the first round until the run ends.

    Tables tell about a round only when it is over, so there are no events of single clients.

    Args:
        folder: the run's folder.
        poll_s: seconds between two reads of the tables.
        sleep: how to wait.

    Raises:
        UserError: the folder is missing, or holds no run.
    """
    if not folder.is_dir():
        raise UserError(f"there is no run at {folder}; `fedvsr list` shows all runs")
    started, shown = False, -1
    slowest_s = list[float]()
    while True:
        # Read before the tables: if the run ends in between, the next look sees all of it.
        status = _status(folder)
        results = _read(folder, shown + 1)
        if results is not None and not results.runs.empty:
            row = results.runs.iloc[0].to_dict()
            if not started:
                started = True
                yield _start(row)
            rounds = results.rounds
            if status in ("running", "starting"):
                # A round's scores are added after its row. The run may have begun since `status`.
                rounds = rounds[rounds["evaluate_s"].notna()]
            for round_idx in sorted(rounds["round_idx"]):
                if round_idx > shown:
                    shown = int(round_idx)
                    yield _round(results, shown)
        if status not in ("running", "starting"):
            if not started:
                raise UserError(
                    f"{folder} has no tables and no process writes any; is it a run's folder?"
                )
            return
        if results is not None:
            slowest_s = sorted([*slowest_s, *_walls(results)[lambda walls: walls.index > 0]])[-1:]
        if status == "running" and _is_dead(folder, slowest_s):
            return
        sleep(poll_s)


def recorded(folder: Path) -> list[RoundRecorded]:
    """The rounds in a run's tables, in order; none if these cannot be read."""
    try:
        results = _tables(folder)
    except (UserError, OSError):
        return []
    # As a resumed run sees them: it sets a damaged table aside.
    return [_round(results, round_idx) for round_idx in sorted(results.rounds["round_idx"])]


def ending(folder: Path) -> tuple[str, str | None]:
    """How a run ended (`finished`, `failed`, `interrupted` or `stopped`), and its error if any."""
    row = run_tables(folder, {"runs": None})["runs"].to_pandas().iloc[0].to_dict()
    status = "stopped" if row["status"] == "running" else str(row["status"])
    error = row["error"]
    return status, None if pd.isna(error) else str(error)


def _status(folder: Path) -> str:
    try:
        statuses = run_tables(folder, {"runs": ["run_id", "status"]})["runs"]["status"].to_pylist()
    except OSError:
        statuses = []
    if not statuses:
        return "starting" if silence_s(folder) < STARTING_S else "stopped"
    return str(statuses[0])


@dataclass(frozen=True)
class _Tables:
    """The tables of a run as pandas tables, from one round on."""

    runs: pd.DataFrame
    rounds: pd.DataFrame
    clients: pd.DataFrame
    evaluations: pd.DataFrame


def _tables(folder: Path, since: int = 0) -> _Tables:
    names = [field.name for field in fields(_Tables)]
    tables = run_tables(folder, dict.fromkeys(names), since)
    return _Tables(**{name: table.to_pandas() for name, table in tables.items()})


def _read(folder: Path, since: int) -> _Tables | None:
    try:
        return _tables(folder, since)
    except OSError:
        # On a shared file system a file can be missing for a moment while it is replaced.
        return None


def _is_dead(folder: Path, slowest_s: Sequence[float]) -> bool:
    return silence_s(folder) > patience_s(slowest_s) and run_status(folder) == "stopped"


def _start(row: dict[Any, Any]) -> RunStarted:
    names = ("num_rounds", "num_params", "num_clients")
    counts = {name: int(row[name]) for name in names}
    shared = row.get("num_shared_params")
    return RunStarted(
        run_id=row["run_id"],
        round_idx=0,
        device=row["device"],
        notes=(),
        num_shared_params=None if pd.isna(shared) else int(shared),
        **counts,
    )


def _round(results: _Tables, round_idx: int) -> RoundRecorded:
    rounds, clients, evaluations = (
        table[table["round_idx"] == round_idx]
        for table in (results.rounds, results.clients, results.evaluations)
    )
    row = rounds.iloc[0]
    scores = [
        ClipScore(
            clip_id=score["clip_id"],
            test_set=score["test_set"],
            num_frames=score["num_frames"],
            degradation=score["degradation"] or "",
            values={name: score[name] for name in columns() if not pd.isna(score[name])},
        )
        for score in evaluations.to_dict("records")
    ]
    return RoundRecorded(
        round_idx,
        clients.sort_values("position")["client_id"].tolist(),
        None if pd.isna(row["loss"]) else float(row["loss"]),
        scores,
        float(_walls(results)[round_idx]),
        num_absent=_num_absent(results, row["num_online"]),
        **{name: 0 if pd.isna(row[name]) else int(row[name]) for name in _SHORT},
    )


def _num_absent(results: _Tables, num_online: float) -> int:
    run = results.runs.iloc[0]
    if pd.isna(num_online) or not run["config"]:
        return 0
    federation = json.loads(run["config"]).get("federation", {})
    return num_absent(federation, int(run["num_clients"]), int(num_online))


def _walls(results: _Tables) -> pd.Series[float]:
    """Seconds of each round, by its index: what `fedvsr run` shows."""
    first = results.clients.groupby("round_idx")["started_s"].min().dropna()
    walls = dict[int, float]()
    for row in results.rounds.to_dict("records"):
        round_idx, gap_s = int(row["round_idx"]), row["gap_s"]
        start_s = first.get(round_idx, 0.0)
        trained_s = round_s(None if pd.isna(gap_s) else gap_s, row["train_s"], start_s)
        # Round 0 is only scored.
        walls[round_idx] = trained_s if round_idx else row["evaluate_s"]
    return pd.Series(walls, dtype=float).sort_index()
