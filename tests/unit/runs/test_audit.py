"""A resumed run whose tables were deleted or damaged says which rows are lost."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from fedvsr.config import load_config
from fedvsr.federation.executors import Fault, SerialExecutor
from fedvsr.records import read_run
from fedvsr.runs.audit import _spans, missing_rows, set_aside_damaged
from fedvsr.runs.events import RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.run import open_run, run_status
from tests.integration.running import split_of


@pytest.fixture
def folder(undisturbed: Path, tmp_path: Path) -> Path:
    """A finished run of three rounds."""
    return Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name))


def resume(folder: Path, to_round: int = 3) -> tuple[RunStarted, list[Fault]]:
    """Resume a run; returns its first event and what is recorded as lost."""
    config = load_config(str(folder / "config.yaml"))
    if to_round < 3:
        (folder / "checkpoints" / "round-000003.safetensors").unlink()
    events = list(execute(open_run(config, folder), split_of(config), SerialExecutor))
    assert isinstance(events[0], RunStarted)
    return events[0], [e for e in events if isinstance(e, Fault) and e.kind == "table"]


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 8
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("table", "lost"),
    [
        ("rounds", "lacks the rows of rounds 0 to 2, which cannot be had back"),
        ("clients", "lacks the rows of rounds 1 to 2, which cannot be had back"),
        ("evaluations", "lacks the rows of rounds 0 to 1, which cannot be had back"),
        ("runs", "is missing: when the run was started is lost"),
    ],
)
@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_lost_rows_are_named_and_the_run_goes_on(
    folder: Path, table: str, lost: str, how: str
) -> None:
    path = folder / f"{table}.parquet"
    whole = pd.read_parquet(path)
    path.unlink() if how == "deleted" else damage(path)
    started, faults = resume(folder, to_round=2)
    messages = [note for note in started.notes if str(path) in note]
    assert [fault.message for fault in faults] == messages
    assert lost in messages[-1]
    assert len(messages) == (2 if how == "damaged" else 1)
    if how == "damaged":
        assert messages[0] == (
            f"{path} is damaged: its SHA-256 is not the one that it was written with; it is kept "
            f"as {table}.parquet.damaged"
        )
        assert (folder / f"{table}.parquet.damaged").exists()
    assert run_status(folder) == "finished"
    recorded = pd.read_parquet(folder / "faults.parquet")
    assert recorded["kind"].tolist() == ["table"] * len(messages)
    if table == "runs":
        return
    # What is repeated is as it was; the last scores are made again; nothing is made up.
    again = pd.read_parquet(path)
    first = {"rounds": 2, "clients": 3, "evaluations": 2}[table]
    assert sorted(set(again["round_idx"])) == list(range(first, 4))
    if table == "rounds":
        assert again["num_sampled"].isna().tolist() == [True, False]
    same = [c for c in ("round_idx", "client_id", "clip_id", "psnr_db") if c in again]
    expected = whole[whole["round_idx"] >= first][same].reset_index(drop=True)
    pd.testing.assert_frame_equal(again[same], expected)


def test_lost_failures_are_counted(folder: Path) -> None:
    (folder / "rounds.parquet").unlink()
    resume(folder)
    assert len(pd.read_parquet(folder / "faults.parquet")) == 1
    (folder / "faults.parquet").unlink()
    with (folder / "events.jsonl").open("ab") as file:
        file.write(b'{"event": "Fault", "cut off')
    started, _ = resume(folder)
    assert any("faults.parquet lacks 1 rows" in note for note in started.notes)


def test_a_whole_run_lacks_nothing(folder: Path) -> None:
    assert set_aside_damaged(folder) == []
    assert missing_rows(folder, 3, range(4)) == []
    started, faults = resume(folder)
    assert (started.notes, faults) == ((), [])
    assert read_run(folder) is not None


def test_rounds_are_written_for_people() -> None:
    assert _spans([4]) == "round 4"
    assert _spans([1, 2, 3]) == "rounds 1 to 3"
    assert _spans([0, 1, 5, 7, 8]) == "rounds 0 to 1, 5 and 7 to 8"
