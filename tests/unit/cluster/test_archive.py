from __future__ import annotations

import io
import json
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedvsr.cluster import archive

JOB = "demo-20260101-000000-abcd"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The results folder of a cluster, where a job has run `run-1`."""
    folder = tmp_path / "run-1"
    (folder / "frames").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    noise = np.random.default_rng(0).bytes(3_000_001)
    (folder / "model.safetensors").write_bytes(noise)
    (folder / "config.yaml").write_text("name: run\n")
    (folder / "frames" / "a b.png").write_bytes(b"png")
    (folder / "empty").write_bytes(b"")
    (folder / ".lock").write_bytes(b"")
    (folder / "checkpoints" / "round-1.safetensors").write_bytes(b"state")
    record(tmp_path, '{"run_id": "run-1"}')
    return tmp_path


def record(out: Path, text: str) -> None:
    (out / ".jobs").mkdir(exist_ok=True)
    (out / ".jobs" / f"{JOB}.json").write_text(text)


def unpack(log: list[str]) -> tuple[int, dict[str, bytes]]:
    file = io.BytesIO()
    received = archive.read(log, file)
    assert received.folder == "run-1"
    with zipfile.ZipFile(file) as zipped:
        assert zipped.testzip() is None
        return received.num_files, {name: zipped.read(name) for name in zipped.namelist()}


def test_a_folder_arrives_as_it_was_sent(out: Path) -> None:
    script = [sys.executable, "-I", str(archive.__file__), str(out), JOB]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    noise_of_a_log = ["Runtime env is setting up.\n", *done.stdout.splitlines(keepends=True)]
    count, files = unpack(noise_of_a_log)
    assert count == 4
    assert set(files) == {"config.yaml", "model.safetensors", "frames/a b.png", "empty"}
    assert files["model.safetensors"] == (out / "run-1" / "model.safetensors").read_bytes()
    assert max(map(len, done.stdout.splitlines())) < 20_000, "a log's chunk"
    _, files = unpack(list(archive.lines(out, JOB, checkpoints=True)))
    assert files["checkpoints/round-1.safetensors"] == b"state"


@pytest.mark.parametrize("harm", ["lost", "cut", "changed", "swapped"])
def test_an_incomplete_or_damaged_log_is_refused(out: Path, harm: str) -> None:
    log = list(archive.lines(out, JOB, checkpoints=False))
    if harm == "lost":
        del log[5]
    elif harm == "cut":
        del log[40:]
    elif harm == "changed":
        log[3] = log[3][:100] + ("A" if log[3][100] != "A" else "B") + log[3][101:]
    else:
        log[3], log[4] = log[4], log[3]
    with pytest.raises(ValueError, match=r"damaged|nothing was sent"):
        archive.read(log, io.BytesIO())


def refusal(out: Path, job_id: str = JOB) -> str:
    sent = list(archive.lines(out, job_id, checkpoints=True))
    assert len(sent) == 1, "nothing of the folder was sent"
    with pytest.raises(ValueError, match=r".") as raised:
        archive.read(sent, io.BytesIO())
    return str(raised.value)


@pytest.mark.parametrize(
    "run_id",
    ["", ".", "..", ".hidden", "/", "a/b", "../x", "a\\b", "a\n", 3, "sweeps/..", "sweeps/a/b"],
)
def test_a_record_that_names_no_run_is_refused(out: Path, run_id: object) -> None:
    record(out, json.dumps({"run_id": run_id}))
    assert f"{run_id!r} is not the folder of a run or sweep" in refusal(out)


def test_a_job_id_cannot_leave_the_folder_of_records(out: Path) -> None:
    (out / "x.json").write_text('{"run_id": "run-1"}')
    for job_id in ("", ".", "..", "../x", f"{out}/x", ".x"):
        assert f"{job_id!r} is not a job's id" in refusal(out, job_id)


def test_a_job_without_a_run_is_told_from_a_folder_that_cannot_be_sent(out: Path) -> None:
    with pytest.raises(archive.NoRunError):
        archive.read(archive.lines(out, "another-job", False), io.BytesIO())
    with pytest.raises(archive.NoRunError):
        archive.read(archive.lines(out / "nowhere", JOB, False), io.BytesIO())
    record(out, "{")
    assert f"{JOB}.json is damaged" in refusal(out)
    record(out, '{"run_id": "run-2"}')
    assert "run-2 on the head is not a run's folder: config.yaml is missing" in refusal(out)


def test_a_link_is_not_sent(out: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (out / "run-1" / "frames" / "link.png").symlink_to(tmp_path / "secret")
    assert "link.png is a link" in refusal(out)


def test_the_reason_for_an_empty_log_is_its_last_lines() -> None:
    with pytest.raises(ValueError, match="python: not found"):
        archive.read(["", "sh: 1: python: not found\n"], io.BytesIO())
