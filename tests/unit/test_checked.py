"""Damage to a saved file is noticed, whichever bit of it has changed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import polars
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from fedvsr.checked import (
    read_metadata,
    read_parquet,
    read_tensors,
    write_parquet,
    write_tensors,
)
from fedvsr.checked_text import read_json, read_yaml, write_json, write_yaml
from fedvsr.cluster import archive
from fedvsr.cluster.fetch import JOB_VARIABLE, record_folder
from fedvsr.config import load_config
from fedvsr.errors import DamagedError
from fedvsr.files import remove_temporaries, replacing

TENSORS = {"a": np.arange(50, dtype=np.float32), "b": np.zeros((2, 3), np.int64)}
TABLE = pa.table({"round_idx": list(range(40)), "name": ["x" * (i % 5) for i in range(40)]})


def tensors_file(path: Path) -> Callable[[Path], object]:
    write_tensors(path, TENSORS, {"format": 2, "round_idx": 7})
    return read_tensors


def parquet_file(path: Path) -> Callable[[Path], object]:
    write_parquet(path, TABLE.replace_schema_metadata({"schema_version": "4"}))
    return read_parquet


def yaml_file(path: Path) -> Callable[[Path], object]:
    write_yaml(path, load_config("demo").to_yaml())
    return read_yaml


def json_file(path: Path) -> Callable[[Path], object]:
    write_json(path, {"clips": [{"clip_id": "a", "num_frames": 7}], "notes": ["é"]})
    return read_json


WRITERS = [tensors_file, parquet_file, yaml_file, json_file]


@pytest.mark.parametrize("write", WRITERS)
def test_every_flipped_bit_is_noticed(
    tmp_path: Path, write: Callable[[Path], Callable[[Path], object]]
) -> None:
    path, damaged = tmp_path / "whole", tmp_path / "damaged"
    read = write(path)
    read(path)
    data = path.read_bytes()
    # One bit of every byte, another one each time.
    for i in range(len(data)):
        flipped = bytearray(data)
        flipped[i] ^= 1 << random.Random(i).randrange(8)
        damaged.write_bytes(flipped)
        with pytest.raises(DamagedError, match="damaged"):
            read(damaged)


@pytest.mark.parametrize("write", WRITERS)
def test_every_truncation_is_noticed(
    tmp_path: Path, write: Callable[[Path], Callable[[Path], object]]
) -> None:
    path, damaged = tmp_path / "whole", tmp_path / "damaged"
    read = write(path)
    data = path.read_bytes()
    for length in range(0, len(data), 7):
        damaged.write_bytes(data[:length])
        with pytest.raises(DamagedError, match="damaged"):
            read(damaged)
    damaged.write_bytes(data + b"\0")
    with pytest.raises(DamagedError, match="damaged"):
        read(damaged)


def test_what_was_written_is_read(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", TENSORS, {"clients": [[1, 2]]})
    tensors, metadata = read_tensors(tmp_path / "t")
    assert tensors.keys() == TENSORS.keys()
    assert all(np.array_equal(tensors[name], TENSORS[name]) for name in TENSORS)
    assert metadata["clients"] == [[1, 2]]
    write_parquet(tmp_path / "p", TABLE)
    assert read_parquet(tmp_path / "p").equals(TABLE)
    with pytest.raises(FileNotFoundError):
        read_parquet(tmp_path / "none")


def test_text_is_read_as_it_was_written(tmp_path: Path) -> None:
    write_json(tmp_path / "j", {"a": [1, {"b": None}], "ü": "\n"})
    assert read_json(tmp_path / "j") == {"a": [1, {"b": None}], "ü": "\n"}
    config = load_config("demo")
    write_yaml(tmp_path / "c.yaml", config.to_yaml())
    assert read_yaml(tmp_path / "c.yaml") == config.model_dump(mode="json")
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "none")


def test_text_of_older_versions_is_read_without_a_checksum(tmp_path: Path) -> None:
    (tmp_path / "j").write_text('{"a": 1}')
    assert read_json(tmp_path / "j") == {"a": 1}
    (tmp_path / "c.yaml").write_text("name: old\n")
    assert read_yaml(tmp_path / "c.yaml") == {"name": "old"}


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", '"text"', "[" * 100_000])
def test_json_that_is_no_table_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "j").write_text(text)
    with pytest.raises(DamagedError, match=r"/j is damaged: it (is not JSON|holds no table)"):
        read_json(tmp_path / "j")


def test_every_flipped_bit_of_a_jobs_record_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head reads it by a file that cannot import the package."""
    monkeypatch.setenv(JOB_VARIABLE, "job")
    record_folder(tmp_path, "run-1")
    # A neighbour whose name is one bit away: 1 is 0x31, 3 is 0x33.
    for run_id in ("run-1", "run-3"):
        (tmp_path / run_id).mkdir()
        (tmp_path / run_id / "config.yaml").touch()
    path = tmp_path / archive.JOBS / "job.json"
    data = path.read_bytes()
    assert next(archive.lines(tmp_path, "job", checkpoints=False)).startswith(archive.DATA)
    for i in range(8 * len(data)):
        flipped = bytearray(data)
        flipped[i // 8] ^= 1 << i % 8
        path.write_bytes(flipped)
        sent = list(archive.lines(tmp_path, "job", checkpoints=False))
        assert sent[0].startswith(archive.FAILED), flipped
        assert "job.json is damaged" in sent[0]


def test_other_programs_read_the_files(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t.safetensors", TENSORS, {})
    with safe_open(str(tmp_path / "t.safetensors"), framework="np") as file:
        assert np.array_equal(file.get_tensor("a"), TENSORS["a"])
    path = tmp_path / "p.parquet"
    write_parquet(path, TABLE)
    expected = TABLE.to_pandas()
    pd.testing.assert_frame_equal(pd.read_parquet(path), expected)
    pd.testing.assert_frame_equal(duckdb.sql(f"from '{path}'").df(), expected)
    assert polars.read_parquet(path)["round_idx"].to_list() == expected["round_idx"].tolist()
    # A table that another program writes has no mark, and is read.
    pq.write_table(pq.read_table(path).slice(3), path)
    assert read_parquet(path).num_rows == 37


def test_pages_have_checksums_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    write_parquet(path, TABLE)
    data = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(0)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start + column.total_compressed_size // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(OSError, match="CRC checksum verification failed"):
        pq.ParquetFile(path, page_checksum_verification=True).read()


def header_file(path: Path, header: str) -> Path:
    path.write_bytes(len(header).to_bytes(8, "little") + header.encode() + bytes(4))
    return path


TENSOR = '"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (f"{{{TENSOR},{TENSOR}}}", "its header names a twice"),
        ("[1]", "its header is not valid"),
        ("{", "its header is not valid"),
        ("[" * 5000, "its header is not valid"),
        (f'{{"__metadata__":{{"fedvsr":"[]"}},{TENSOR}}}', "has metadata of fedvsr that is no tab"),
        (f'{{"__metadata__":{{"fedvsr":"no"}},{TENSOR}}}', "its header is not valid"),
        (f'{{"__metadata__":{{"fedvsr":3}},{TENSOR}}}', "its header is not valid"),
        (f'{{"__metadata__":7,{TENSOR}}}', "its header is not valid"),
    ],
)
def test_malformed_headers_are_named(tmp_path: Path, header: str, message: str) -> None:
    with pytest.raises(DamagedError, match=message):
        read_metadata(header_file(tmp_path / "f", header))


def test_a_file_without_a_mark_is_read(tmp_path: Path) -> None:
    entry = json.dumps(json.dumps({"format": 2}))
    header = f'{{"__metadata__":{{"fedvsr":{entry}}},{TENSOR}}}'
    assert read_tensors(header_file(tmp_path / "old", header))[1] == {"format": 2}
    assert read_metadata(header_file(tmp_path / "other", f"{{{TENSOR}}}")) == {}


def test_all_files_have_one_mode(tmp_path: Path) -> None:
    write_tensors(tmp_path / "t", TENSORS, {})
    write_parquet(tmp_path / "p", TABLE)
    (tmp_path / "plain").touch()
    assert len({path.stat().st_mode for path in tmp_path.iterdir()}) == 1


def test_only_what_killed_processes_left_is_removed(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    (tmp_path / "below").mkdir()
    dead = tmp_path / "below" / f".rounds.parquet.{int(done.stdout)}.tmp"
    alive = tmp_path / f".curves.png.{os.getppid()}.tmp"
    other = tmp_path / ".mine.tmp"
    for path in (dead, alive, other):
        path.touch()
    with replacing(tmp_path / "x") as aside:
        assert aside.name == f".x.{os.getpid()}.tmp"
        aside.write_text("x")
    remove_temporaries(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        ["below", alive.name, other.name, "x"]
    )
    assert not dead.exists()
