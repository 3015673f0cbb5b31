"""Rows are appended to a journal and move to the tables: nothing is lost or doubled on the way."""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.cluster import archive
from fedvsr.errors import DamagedError
from fedvsr.journal import NAME
from fedvsr.recording import RunRecords
from fedvsr.records import read_table
from fedvsr.runs.audit import set_aside_damaged

IDENTITY = {"run_id": "r", "config_hash": "c", "seed": 1, "fedvsr_version": "v", "num_overlap": 0}
TABLES = ("rounds", "clients", "evaluations", "faults")


def record(records: RunRecords, round_idx: int) -> None:
    """Three entries: a fault, a trained round and its scores."""
    records.add_fault({"round_idx": round_idx, "kind": "died", "message": "m", "final": False})
    clients = [{"client_id": c, "position": c, "loss": 0.1 * c} for c in range(2)]
    records.write_round(round_idx, {"num_sampled": 2, "loss": math.nan}, clients)
    score = {"clip_id": "a", "test_set": "t", "num_frames": 1, "psnr_db": math.inf}
    records.write_scores(round_idx, {"psnr_db": 30.0, "evaluate_s": 1.0}, [score])


def never(folder: Path) -> RunRecords:
    """Records that write no table by themselves after the first addition."""
    records = RunRecords(folder, IDENTITY, write_s=math.inf)
    records.begin_round(0, None)
    return records


def tables(folder: Path) -> dict[str, str]:
    """All rows; as text, in which values that are not a number are equal."""
    return {name: str(read_table(folder, name).to_pylist()) for name in TABLES}


def stored(folder: Path, name: str) -> pa.Table:
    return pq.ParquetFile(folder / f"{name}.parquet").read()


def test_a_round_costs_the_same_whatever_came_before_it(tmp_path: Path) -> None:
    records, sizes = never(tmp_path), [0]
    for round_idx in range(1, 101):
        record(records, round_idx)
        sizes.append((tmp_path / NAME).stat().st_size)
    steps = [after - before for before, after in pairwise(sizes)]
    assert max(steps) < 1.05 * steps[0], "bytes of a round"
    assert stored(tmp_path, "rounds").num_rows == 1, "a table was written meanwhile"
    assert read_table(tmp_path, "rounds")["round_idx"].to_pylist() == list(range(101))
    records.write_run({"status": "finished"})
    assert stored(tmp_path, "rounds").num_rows == 101
    assert stored(tmp_path, "clients").num_rows == 200
    assert not (tmp_path / NAME).exists()


def test_tables_are_written_when_it_is_time(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, IDENTITY)
    records.begin_round(0, None)
    assert stored(tmp_path, "rounds").num_rows == 1, "the first addition finds the tables due"
    records.begin_round(1, None)
    assert stored(tmp_path, "rounds").num_rows == 1, "the next one does not"
    assert read_table(tmp_path, "rounds").num_rows == 2


def test_rows_are_equal_in_the_journal_and_in_the_tables(tmp_path: Path) -> None:
    records = never(tmp_path)
    for round_idx in (1, 2, 3):
        record(records, round_idx)
    record(records, 2)
    before, kept = tables(tmp_path), (tmp_path / NAME).read_bytes()
    records.write_run({"status": "running"})
    assert tables(tmp_path) == before
    assert {name: str(stored(tmp_path, name).to_pylist()) for name in TABLES} == before
    # Killed after the tables were written, before the journal was emptied.
    (tmp_path / NAME).write_bytes(kept)
    assert tables(tmp_path) == before
    again = RunRecords(tmp_path, IDENTITY, write_s=math.inf)
    record(again, 4)
    assert read_table(tmp_path, "faults")["round_idx"].to_pylist() == [1, 2, 3, 2, 4]
    assert read_table(tmp_path, "rounds")["round_idx"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_kill_at_any_byte_loses_only_what_was_being_written(tmp_path: Path) -> None:
    records = never(tmp_path)
    ends, states = [0], [tables(tmp_path)]
    for round_idx in (1, 2):
        record(records, round_idx)
        ends.append((tmp_path / NAME).stat().st_size)
        states.append(tables(tmp_path))
    whole = (tmp_path / NAME).read_bytes()
    ends += [i + 1 for i, byte in enumerate(whole) if byte == ord("\n")]
    for size in {*range(0, len(whole), 97), *ends, *(end - 1 for end in ends if end)}:
        (tmp_path / NAME).write_bytes(whole[:size])
        seen = read_table(tmp_path, "rounds").to_pylist()
        scored = [row["round_idx"] for row in seen if row["evaluate_s"] is not None]
        complete = sum(end <= size for end in ends[1:3])
        assert scored == list(range(1, complete + 1))
        if size in ends[:3]:
            assert tables(tmp_path) == states[ends.index(size)]
    # The next process goes on where the cut line began.
    (tmp_path / NAME).write_bytes(whole[: ends[1] + 10])
    record(RunRecords(tmp_path, IDENTITY, write_s=math.inf), 2)
    assert tables(tmp_path) == states[2]


def test_a_damaged_line_is_named(tmp_path: Path) -> None:
    records = never(tmp_path)
    record(records, 1)
    data = bytearray((tmp_path / NAME).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / NAME).write_bytes(data)
    with pytest.raises(DamagedError, match=r"added.jsonl is damaged in line \d"):
        read_table(tmp_path, "rounds")
    (message,) = set_aside_damaged(tmp_path)
    assert message.endswith("it is kept as added.jsonl.damaged")
    assert read_table(tmp_path, "rounds")["round_idx"].to_pylist() == [0]


def test_a_copy_of_a_running_run_takes_the_journal_first(tmp_path: Path) -> None:
    record(never(tmp_path), 1)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "round-0001.safetensors").touch()
    assert archive.run_files(tmp_path, checkpoints=True)[0].name == NAME
