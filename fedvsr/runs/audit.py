"""What a resumed run has lost: rows that went with a file that was deleted or damaged.

A run is resumed from its checkpoint, which holds no tables. Rows of rounds before it cannot be made
again, so the run says which ones are missing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa

from fedvsr.errors import DamagedError
from fedvsr.federation.executors import Fault
from fedvsr.journal import Journal
from fedvsr.parts import part_files, part_path
from fedvsr.records import read_table
from fedvsr.schemas import SCHEMAS
from fedvsr.stored import require_readable


def faults_before(
    round_idx: int, damaged: Sequence[str], lost: Sequence[str], died: bool
) -> Iterator[Fault]:
    """What went wrong before this process took over a run.

    Args:
        round_idx: the round after which it resumes.
        damaged: what is wrong with newer checkpoints.
        lost: what the tables lack.
        died: whether the process that executed the run before has died.
    """
    for message in damaged:
        yield Fault(round_idx, None, "checkpoint", message, final=True)
    for message in lost:
        yield Fault(round_idx, None, "table", message, final=True)
    if died:
        message = f"the process that executed this run died; resumed after round {round_idx}"
        yield Fault(round_idx + 1, None, "driver", message)


def set_aside_damaged(folder: Path) -> list[str]:
    """Rename a run's damaged files of tables, and its journal, so that new ones can be written.

    Returns:
        A message for each.
    """
    checks: dict[Path, Callable[[], object]] = {
        path: partial(require_readable, path, SCHEMAS[name])
        for name in reversed(SCHEMAS)
        for path in (part_path(folder, name, 0), *part_files(folder, name))
        if path.exists()
    }
    journal = Journal(folder)
    checks[journal.path] = journal.entries
    messages = list[str]()
    for path, check in checks.items():
        try:
            check()
        except DamagedError as error:
            aside = path.with_name(f"{path.name}.damaged")
            path.replace(aside)
            messages.append(f"{error}; it is kept as {aside.name}")
    return messages


def missing_rows(folder: Path, last_round: int, evaluated: Collection[int]) -> list[str]:
    """What the tables of a run lack of the rounds before it is resumed.

    Args:
        folder: the run's.
        last_round: the round of the checkpoint.
        evaluated: the rounds whose scores were due and are not made again.

    Returns:
        A message for each table.
    """
    rounds = read_table(folder, "rounds", ["round_idx", "num_sampled", "num_failed"])
    known = set(rounds["round_idx"].to_pylist())
    lacking = {
        "rounds": set(range(last_round + 1)) - known,
        "clients": _with_clients(rounds, last_round) - _rounds_of(folder, "clients"),
        "evaluations": set(evaluated) - _rounds_of(folder, "evaluations"),
    }
    messages = [
        f"{folder / name}.parquet lacks the rows of {_spans(sorted(missing))}, which cannot be had "
        "back; a new run makes them again"
        for name, missing in lacking.items()
        if missing
    ]
    # A run that continues another's has a checkpoint before its first start.
    started = (folder / "events.jsonl").is_file() and (folder / "events.jsonl").stat().st_size
    if started and not read_table(folder, "runs").num_rows:
        messages.append(f"{folder / 'runs.parquet'} is missing: when the run was started is lost")
    lost = _num_faults(folder) - read_table(folder, "faults", ["round_idx"]).num_rows
    if lost > 0:
        messages.append(
            f"{folder / 'faults.parquet'} lacks {lost} rows, which cannot be had back; "
            "events.jsonl has their messages"
        )
    return messages


def _rounds_of(folder: Path, name: str) -> set[int]:
    return set(read_table(folder, name, ["round_idx"])["round_idx"].unique().to_pylist())


def _with_clients(rounds: pa.Table, last_round: int) -> set[int]:
    """The rounds in which clients trained; a round without a row is taken for one."""
    columns = (rounds[name].to_pylist() for name in ("round_idx", "num_sampled", "num_failed"))
    idle = {
        round_idx
        for round_idx, sampled, failed in zip(*columns, strict=True)
        if sampled is not None and sampled == (failed or 0)
    }
    return set(range(1, last_round + 1)) - idle


def _num_faults(folder: Path) -> int:
    """Failures in the run's log. Each was written to the table before."""
    try:
        with (folder / "events.jsonl").open("rb") as file:
            return sum(_is_fault(line) for line in file)
    except FileNotFoundError:
        return 0


def _is_fault(line: bytes) -> bool:
    # Most lines are of other events and are not parsed; the process may have died within one.
    if b'"Fault"' not in line:
        return False
    try:
        return bool(json.loads(line).get("event") == "Fault")
    except (ValueError, AttributeError):
        return False


def _spans(rounds: Sequence[int]) -> str:
    """Rounds for people: `rounds 0 to 3, 5 and 7 to 9`."""
    parts = [f"{a} to {b}" if b > a else f"{a}" for a, b in _runs_of(rounds)]
    text = " and ".join([", ".join(parts[:-1]), parts[-1]] if parts[:-1] else parts)
    return f"round{'s' if len(rounds) > 1 else ''} {text}"


def _runs_of(rounds: Sequence[int]) -> Iterator[tuple[int, int]]:
    """First and last of each stretch of neighbouring numbers."""
    start = 0
    for i in range(1, len(rounds) + 1):
        if i == len(rounds) or rounds[i] != rounds[i - 1] + 1:
            yield rounds[start], rounds[i - 1]
            start = i
