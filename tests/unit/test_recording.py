"""Rows are appended to a journal and move to the tables: nothing is lost or doubled on the way."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.cluster import archive
from fedvsr.errors import DamagedError
from fedvsr.journal import NAME
from fedvsr.parts import part_files
from fedvsr.recording import RunRecords
from fedvsr.records import read_table
from fedvsr.runs.audit import missing_rows, set_aside_damaged

IDENTITY = {"run_id": "r", "config_hash": "c", "seed": 1, "fedvsr_version": "v", "num_overlap": 0}
TABLES = ("rounds", "clients", "evaluations", "faults")


@pytest.fixture(autouse=True)
def no_sync(monkeypatch: pytest.MonkeyPatch) -> None:
    """No power loss is tested here, and a busy disk takes long to sync."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


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


def parts(folder: Path, name: str) -> list[str]:
    return [path.name for path in part_files(folder, name)]


def small(folder: Path) -> RunRecords:
    """Records that write the tables after each addition, in parts of 8 rows."""
    return RunRecords(folder, IDENTITY, write_s=0.0, part_rows=8)


def written_bytes() -> int:
    """Bytes that this process has written so far, to files or elsewhere."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def test_writing_the_tables_costs_the_same_whatever_came_before(tmp_path: Path) -> None:
    records, sizes = RunRecords(tmp_path, IDENTITY, math.inf, part_rows=16), list[int]()
    for round_idx in range(1, 49):
        before = written_bytes()
        record(records, round_idx)
        sizes.append(written_bytes() - before)
        rows = {n: table._newest.merged().num_rows for n, table in records._tables.items()}
        assert max(rows.values()) < 16 + 4, "rows in memory"
    # A part of `clients` is full after 8 rounds, one of the others after 16.
    first, last = sum(sizes[8:16]), sum(sizes[40:48])
    assert last < 1.05 * first, "bytes of 8 rounds"
    assert len(parts(tmp_path, "clients")) == 5
    assert read_table(tmp_path, "clients")["round_idx"].to_pylist()[::2] == list(range(1, 49))


def test_parts_hold_what_one_file_would_hold(tmp_path: Path) -> None:
    folders = [tmp_path / "parts", tmp_path / "one"]
    for folder in folders:
        folder.mkdir()
    for records in (small(folders[0]), RunRecords(folders[1], IDENTITY)):
        for round_idx in (*range(20), *range(10, 15)):
            record(records, round_idx)
    # As a run that is resumed and stopped again before it repeats all rounds.
    for records in (small(folders[0]), RunRecords(folders[1], IDENTITY)):
        for round_idx in (*range(7, 24), 3):
            record(records, round_idx)
        assert not records.has_scores(24)
        assert records.has_scores(5)
        assert [row["client_id"] for row in records.of_round("clients", 3)] == [0, 1]
        assert records.last_evaluation()["psnr_db"] == math.inf
    whole = tables(folders[1])
    assert len(parts(folders[0], "clients")) > 4
    assert tables(folders[0]) == whole
    late = read_table(folders[0], "clients", ["client_id", "round_idx"], since=18)
    assert late["round_idx"].to_pylist()[::2] == list(range(18, 24))
    assert late.column_names == ["client_id", "round_idx"]
    again = small(folders[0])
    again.write_run({"status": "finished"})
    assert [parts(folders[0], name) for name in TABLES] == [[]] * 4
    assert {name: str(stored(folders[0], name).to_pylist()) for name in TABLES} == whole
    record(again, 24)
    again.write_run({"status": "running"})
    assert parts(folders[0], "clients")
    assert read_table(folders[0], "rounds")["round_idx"].to_pylist() == list(range(25))


class Killer:
    """Lets `Path.replace` and `Path.unlink` be called so often, and then ends the process."""

    def __init__(self, patched: pytest.MonkeyPatch, left: float) -> None:
        self.calls, self._left = 0, left
        for name in ("replace", "unlink"):
            patched.setattr(Path, name, self._counted(getattr(Path, name)))

    def _counted(self, change: Callable[..., object]) -> Callable[..., object]:
        def changed(*args: object, **options: object) -> object:
            if self.calls >= self._left:
                raise KeyboardInterrupt
            self.calls += 1
            return change(*args, **options)

        return changed


def test_a_kill_while_parts_are_joined_loses_and_doubles_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tmp_path / "whole"
    whole.mkdir()
    records = small(whole)
    for round_idx in (*range(10), *range(5, 9)):
        record(records, round_idx)
    before = tables(whole)
    with monkeypatch.context() as patched:
        copy = shutil.copytree(whole, tmp_path / "copy")
        killer = Killer(patched, math.inf)
        small(copy).write_run({"status": "finished"})
    assert killer.calls > 10
    for moment in range(killer.calls):
        folder = shutil.copytree(whole, tmp_path / f"{moment}")
        with monkeypatch.context() as patched, suppress(KeyboardInterrupt):
            Killer(patched, moment)
            small(folder).write_run({"status": "finished"})
        assert tables(folder) == before, moment
        small(folder).write_run({"status": "finished"})
        assert {name: str(stored(folder, name).to_pylist()) for name in TABLES} == before, moment


def test_a_damaged_part_is_set_aside_and_the_others_stay(tmp_path: Path) -> None:
    records = small(tmp_path)
    for round_idx in range(16):
        record(records, round_idx)
    path = tmp_path / parts(tmp_path, "clients")[0]
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=path.name):
        read_table(tmp_path, "clients")
    (message,) = set_aside_damaged(tmp_path)
    assert message.endswith(f"it is kept as {path.name}.damaged")
    rounds = read_table(tmp_path, "clients")["round_idx"].unique().to_pylist()
    assert rounds == [*range(4), *range(8, 16)]
    (lost,) = missing_rows(tmp_path, 15, range(16))
    assert "clients.parquet lacks the rows of rounds 4 to 7," in lost


def test_a_full_file_of_an_older_version_is_joined_with_newer_rows(tmp_path: Path) -> None:
    records = small(tmp_path)
    for round_idx in range(8):
        record(records, round_idx)
    records.write_run({"status": "interrupted"})
    path = tmp_path / "clients.parquet"
    old = pq.read_table(path).drop_columns(["upload_failed"])
    pq.write_table(old.replace_schema_metadata({"schema_version": "5"}), path)
    again = small(tmp_path)
    record(again, 8)
    again.write_run({"status": "finished"})
    clients = read_table(tmp_path, "clients")
    assert clients["round_idx"].to_pylist()[::2] == list(range(9))
    assert clients["upload_failed"].null_count == 18


def test_only_the_rounds_that_are_asked_for_are_read(tmp_path: Path) -> None:
    records = small(tmp_path)
    for round_idx in range(16):
        record(records, round_idx)
    # What is not read may be damaged.
    for name in parts(tmp_path, "clients")[:-2]:
        data = bytearray((tmp_path / name).read_bytes())
        data[20] ^= 1
        (tmp_path / name).write_bytes(data)
    late = read_table(tmp_path, "clients", since=14)
    assert late["round_idx"].to_pylist() == [14, 14, 15, 15]


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
