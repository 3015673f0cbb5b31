from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

import fedvsr
from fedvsr import checked, stored
from fedvsr.errors import UserError
from fedvsr.recording import RunRecords
from fedvsr.records import read_table
from fedvsr.schemas import SCHEMAS

IDENTITY = {"config_hash": "c", "seed": 1, "fedvsr_version": "v", "git_commit": None}


def write(folder: Path, round_idx: int, loss: float) -> None:
    records = RunRecords(folder, {"run_id": folder.name, **IDENTITY})
    score = {"clip_id": "a", "test_set": "t", "num_frames": 2, "psnr_db": 30.0, "ssim": 0.9}
    clients = [{"client_id": 0, "loss": loss}, {"client_id": 3, "loss": loss}]
    records.write_round(round_idx, {"num_sampled": 1, "loss": loss}, clients)
    bicubic = {"bicubic_psnr_db": 29.0, "bicubic_ssim": 0.8}
    records.write_scores(round_idx, {"psnr_db": 30.0, "evaluate_s": 1.0}, [{**score, **bicubic}])
    records.write_run({"name": folder.name, "status": "running"})


def test_rounds_add_up_and_a_repeated_round_replaces_only_its_own_rows(tmp_path: Path) -> None:
    for round_idx in (1, 2, 3):
        write(tmp_path, round_idx, loss=float(round_idx))
    write(tmp_path, 2, loss=9.0)  # A resumed run repeats round 2; round 3 must stay.
    rounds = pd.read_parquet(tmp_path / "rounds.parquet")
    assert rounds["round_idx"].tolist() == [1, 2, 3]
    assert rounds["loss"].tolist() == [1.0, 9.0, 3.0]
    clients = pd.read_parquet(tmp_path / "clients.parquet")
    assert clients["client_id"].tolist() == [0, 3] * 3
    assert list(tmp_path.glob(".*")) == [], "no partly written file is left"


def test_a_round_is_written_before_its_scores(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, IDENTITY)
    records.begin_round(0, None)
    records.write_round(1, {"num_sampled": 2}, [{"client_id": 0}])
    reopened = RunRecords(tmp_path, IDENTITY)
    assert [reopened.has_scores(i) for i in (0, 1, 2)] == [False, False, False]
    row = {"clip_id": "a", "psnr_db": 30.0}
    reopened.write_scores(1, {"psnr_db": 30.0, "evaluate_s": 1.0}, [row])
    reopened.begin_round(1, None)
    rounds = read_table(tmp_path, "rounds").to_pandas()
    assert rounds["num_sampled"].tolist() == [0, 2], "an existing round must stay"
    assert rounds["psnr_db"].fillna(0).tolist() == [0, 30.0]
    assert RunRecords(tmp_path, IDENTITY).has_scores(1)
    # A repeated round has no scores until they are written again.
    reopened.write_round(1, {"num_sampled": 2}, [{"client_id": 0}])
    assert not reopened.has_scores(1)
    reopened.write_scores(1, {"evaluate_s": 1.0}, [row])
    assert read_table(tmp_path, "evaluations").num_rows == 1


def test_faults_stay_when_rounds_are_repeated(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, IDENTITY)
    fault = {"round_idx": 1, "client_id": 3, "kind": "died", "message": "m", "final": False}
    for _ in range(2):
        records.write_round(1, {"num_sampled": 1}, [])
        records.add_fault(fault)
    records.write_round(1, {"num_sampled": 1}, [])
    assert RunRecords(tmp_path, IDENTITY).last_evaluation() == {}
    assert read_table(tmp_path, "faults")["client_id"].to_pylist() == [3, 3]


def test_all_runs_are_read_into_one_table_of_each_kind(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / "sweep" / name).mkdir(parents=True)
        write(tmp_path / "sweep" / name, 1, 0.5)
    results = fedvsr.load_results(tmp_path)
    assert list(vars(results)) == list(SCHEMAS), "a field per table"
    assert results.evaluations["run_id"].tolist() == ["one", "two"]
    assert results.runs["seed"].tolist() == [1, 1]
    files = sorted(map(str, tmp_path.rglob("clients.parquet")))
    assert ds.dataset(files).to_table().num_rows == 4
    empty = tmp_path / "empty"
    empty.mkdir()
    assert list(fedvsr.load_results(empty).rounds.columns) == SCHEMAS["rounds"].names
    with pytest.raises(UserError, match="there is no folder"):
        fedvsr.load_results(tmp_path / "nowhere")
    with pytest.raises(FrozenInstanceError):
        results.runs = results.rounds  # type: ignore[misc]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The files that are read, as `run/file`."""
    names, read = list[str](), checked.read_parquet

    def noting(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
        table = read(path, columns)
        names.append(f"{path.parent.name}/{path.name}")
        return table

    monkeypatch.setattr(stored, "read_parquet", noting)
    return names


def test_only_the_runs_tables_and_columns_that_are_asked_for_are_read(
    tmp_path: Path, opened: list[str]
) -> None:
    for name in ("one", "two", "three"):
        (tmp_path / name).mkdir()
        write(tmp_path / name, 1, 0.5)
    opened.clear()
    results = fedvsr.load_results(tmp_path, tables={"clients": ["loss"]}, runs=["two", "one"])
    assert sorted(opened) == [
        f"{r}/{t}.parquet" for r in ("one", "two") for t in ("clients", "runs")
    ]
    assert results.clients.columns.tolist() == ["run_id", "loss"]
    assert results.clients["run_id"].tolist() == ["one", "one", "two", "two"]
    assert results.rounds.empty
    assert list(results.rounds.columns) == SCHEMAS["rounds"].names
    opened.clear()
    results = fedvsr.load_results(tmp_path, tables=["runs", "rounds"])
    assert {name.partition("/")[2] for name in opened} == {"runs.parquet", "rounds.parquet"}
    assert results.rounds["loss"].tolist() == [0.5] * 3
    assert len(results.runs) == 3
    # In tables of several runs, only the rows are chosen.
    study = tmp_path / "study"
    study.mkdir()
    for name in SCHEMAS:
        files = sorted(tmp_path.glob(f"*/{name}.parquet"))
        if files:
            tables = pa.concat_tables([pq.read_table(file) for file in files])
            pq.write_table(tables, study / f"{name}.parquet")
    chosen = fedvsr.load_results(study, runs=["three"])
    assert chosen.clients["run_id"].tolist() == ["three"] * 2
    assert chosen.runs["run_id"].tolist() == ["three"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"tables": ["round"]}, "there is no table 'round'; did you mean 'rounds'?"),
        ({"tables": {"rounds": ["los"]}}, "there is no column of rounds 'los'"),
        ({"runs": ["on"]}, "has no run 'on'; did you mean 'one'?"),
    ],
)
def test_what_a_folder_lacks_is_said(tmp_path: Path, asked: Any, message: str) -> None:
    (tmp_path / "one").mkdir()
    write(tmp_path / "one", 1, 0.5)
    with pytest.raises(UserError, match=re.escape(message)):
        fedvsr.load_results(tmp_path, **asked)


def test_collected_tables_count_only_in_their_own_folder(tmp_path: Path) -> None:
    for folder in ("work/one", "work/two", "results/own", "results/study"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("one", "two"):
        write(tmp_path / "work" / name, 1, loss=0.5)
    for name in SCHEMAS:
        files = sorted((tmp_path / "work").glob(f"*/{name}.parquet"))
        if files:
            tables = pa.concat_tables([pq.read_table(file) for file in files])
            pq.write_table(tables, tmp_path / "results" / "study" / f"{name}.parquet")
    write(tmp_path / "results" / "own", 1, loss=0.5)
    assert fedvsr.load_results(tmp_path / "results").runs["run_id"].tolist() == ["own"]
    study = fedvsr.load_results(tmp_path / "results" / "study")
    assert study.runs["run_id"].tolist() == ["one", "two"]
    assert len(study.clients) == 4


def test_files_carry_their_schema_and_units(tmp_path: Path) -> None:
    write(tmp_path, 1, 0.5)
    schema = pq.read_schema(tmp_path / "evaluations.parquet")
    assert schema.metadata[b"schema_version"] == b"8"
    assert schema.field("psnr_db").metadata[b"unit"] == b"dB"
    for name, table in SCHEMAS.items():
        for field in table:
            assert field.metadata[b"description"], (name, field.name)
            if pa.types.is_floating(field.type):
                assert field.metadata[b"unit"], (name, field.name)


def test_columns_that_an_older_file_lacks_are_null(tmp_path: Path) -> None:
    write(tmp_path, 1, 0.5)
    path = tmp_path / "clients.parquet"
    old = pq.read_table(path).drop_columns(["lr", "update_norm"])
    pq.write_table(old.replace_schema_metadata({"schema_version": "1"}), path)
    clients = fedvsr.load_results(tmp_path).clients
    assert clients["lr"].isna().all()
    assert clients["loss"].notna().all()


def test_a_newer_file_is_refused(tmp_path: Path) -> None:
    schema = SCHEMAS["runs"].with_metadata({"schema_version": "99"})
    pq.write_table(schema.empty_table(), tmp_path / "runs.parquet")
    with pytest.raises(UserError, match="schema version 99"):
        fedvsr.load_results(tmp_path)


def test_an_unknown_column_is_a_fault_of_the_program(tmp_path: Path) -> None:
    records = RunRecords(tmp_path, IDENTITY)
    with pytest.raises(AssertionError, match="nonsense"):
        records.write_run({"nonsense": 1})


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def _flip(path: Path) -> None:
    text = bytearray(path.read_bytes())
    text[-20] ^= 0xFF
    path.write_bytes(bytes(text))


def _foreign(path: Path) -> None:
    pq.write_table(pa.table({"hello": [1]}), path)


def _newer(path: Path) -> None:
    pq.write_table(pq.read_table(path).replace_schema_metadata({"schema_version": "99"}), path)


def _of_another_run(path: Path) -> None:
    table = pq.read_table(path)
    i = table.schema.get_field_index("run_id")
    ids = pa.array(["somebody"] * len(table))
    pq.write_table(table.set_column(i, table.schema.field(i), ids), path)


@pytest.mark.parametrize(
    "damage", [_cut, _flip, _foreign, _newer, _of_another_run, lambda path: path.write_bytes(b"")]
)
@pytest.mark.parametrize("name", ["runs", "rounds", "evaluations"])
def test_a_run_with_a_damaged_table_is_skipped_and_its_file_named(
    name: str,
    damage: Callable[[Path], None],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if (name, damage) == ("runs", _of_another_run):
        name = "clients"
    for run_id in ("bad", "good"):
        (tmp_path / run_id).mkdir()
        write(tmp_path / run_id, 1, loss=0.5)
    damage(tmp_path / "bad" / f"{name}.parquet")
    results = fedvsr.load_results(tmp_path)
    for table in ("runs", "rounds", "evaluations"):
        assert set(getattr(results, table)["run_id"]) == {"good"}, table
    (message,) = caplog.messages
    assert message.startswith(f"skipped {tmp_path / 'bad'}: ")
    assert f"{name}.parquet" in message
    assert "\n" not in message
    with pytest.raises(UserError, match=rf"bad/{name}\.parquet "):
        fedvsr.load_results(tmp_path / "bad")


def test_a_copy_of_a_run_does_not_count_twice(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").mkdir()
    write(tmp_path / "a", 1, loss=0.5)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert len(fedvsr.load_results(tmp_path).runs) == 1
    assert f"the run in {tmp_path / 'a'}: a copy of it" in caplog.text
