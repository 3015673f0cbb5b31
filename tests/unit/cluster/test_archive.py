from __future__ import annotations

import io
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from fedvsr.cluster import archive as run_archive


@pytest.fixture
def run(tmp_path: Path) -> Path:
    folder = tmp_path / "run-1"
    (folder / "frames").mkdir(parents=True)
    (folder / "checkpoints").mkdir()
    noise = np.random.default_rng(0).bytes(3_000_001)
    (folder / "model.safetensors").write_bytes(noise)
    (folder / "frames" / "a b.png").write_bytes(b"png")
    (folder / "empty").write_bytes(b"")
    (folder / ".lock").write_bytes(b"")
    (folder / "checkpoints" / "round-1.safetensors").write_bytes(b"state")
    return folder


def unpack(log: list[str]) -> tuple[int, dict[str, bytes]]:
    file = io.BytesIO()
    count = run_archive.read(log, file)
    with zipfile.ZipFile(file) as archive:
        assert archive.testzip() is None
        return count, {name: archive.read(name) for name in archive.namelist()}


def test_a_folder_arrives_as_it_was_sent(run: Path) -> None:
    script = [sys.executable, "-I", str(run_archive.__file__), str(run)]
    done = subprocess.run(script, capture_output=True, text=True, check=True)
    noise_of_a_log = ["Runtime env is setting up.\n", *done.stdout.splitlines(keepends=True)]
    count, files = unpack(noise_of_a_log)
    assert count == 3
    assert set(files) == {"model.safetensors", "frames/a b.png", "empty"}
    assert files["model.safetensors"] == (run / "model.safetensors").read_bytes()
    assert max(map(len, done.stdout.splitlines())) < 20_000, "a log's chunk"
    _, files = unpack(list(run_archive.lines(run, checkpoints=True)))
    assert files["checkpoints/round-1.safetensors"] == b"state"


@pytest.mark.parametrize("harm", ["lost", "cut", "changed", "swapped"])
def test_a_log_that_is_not_whole_is_refused(run: Path, harm: str) -> None:
    log = list(run_archive.lines(run, checkpoints=False))
    if harm == "lost":
        del log[5]
    elif harm == "cut":
        del log[40:]
    elif harm == "changed":
        log[3] = log[3][:100] + ("A" if log[3][100] != "A" else "B") + log[3][101:]
    else:
        log[3], log[4] = log[4], log[3]
    with pytest.raises(ValueError, match=r"damaged|nothing was sent"):
        run_archive.read(log, io.BytesIO())


def test_why_nothing_came_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere on this node"):
        run_archive.read(run_archive.lines(tmp_path / "nowhere", False), io.BytesIO())
    with pytest.raises(ValueError, match="python: not found"):
        run_archive.read(["", "sh: 1: python: not found\n"], io.BytesIO())
