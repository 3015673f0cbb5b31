"""What is written down about the head of `fedvsr cluster up`. test_jobs.py starts a real one."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedvsr.checked_text import write_json
from fedvsr.cli import app
from fedvsr.cluster import job_server, local_head
from fedvsr.cluster.local_head import LocalHead, Process
from fedvsr.errors import DamagedError, UserError

SLEEP = [sys.executable, "-c", "import subprocess, sys; subprocess.run(['sleep', '60'])"]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):
        # Also of those that the tested function sets.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return tmp_path


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    """A process with one below it, in place of a head."""
    with subprocess.Popen(SLEEP) as started:
        while not local_head._below([Process(started.pid, 0)]):
            time.sleep(0.01)
        yield started
        started.kill()


def written(process: subprocess.Popen[bytes], home: Path) -> LocalHead:
    """Write down a head whose process this is."""
    (home / "ray").mkdir()
    own = Process(process.pid, local_head._started(process.pid))
    head = LocalHead(
        "http://127.0.0.1:1", "127.0.0.1:2", str(home / "ray"), local_head._boot(), (own,)
    )
    save(head)
    return head


def save(head: LocalHead) -> None:
    processes = [vars(process) for process in head.processes]
    write_json(local_head._folder() / "head.json", {**vars(head), "processes": processes})


def test_without_a_head_down_says_so_and_the_usual_address_counts() -> None:
    done = CliRunner().invoke(app, ["cluster", "down"])
    assert str(done.exception) == "no head was started here; `fedvsr cluster up` starts one"
    assert local_head.find() is None
    assert job_server.resolve(None) == job_server.DEFAULT_ADDRESS
    assert "RAY_AUTH_MODE" not in os.environ


def test_a_head_that_lives_is_found_with_its_token(
    process: subprocess.Popen[bytes], home: Path
) -> None:
    head = written(process, home)
    assert local_head.find() == head
    with pytest.raises(UserError, match=r"a head runs already, at http://127\.0\.0\.1:1; "):
        local_head.start(2)
    assert job_server.resolve("http://127.0.0.1:9") == "http://127.0.0.1:9"
    assert "RAY_AUTH_MODE" not in os.environ, "that of another head"
    assert job_server.resolve(None) == head.address
    assert os.environ["RAY_AUTH_MODE"] == "token"
    assert os.environ["RAY_AUTH_TOKEN_PATH"] == str(home / ".fedvsr" / "cluster" / "token")


def test_down_ends_the_head_and_what_is_below_it(
    process: subprocess.Popen[bytes], home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_head, "_END_S", 0.3)
    head = written(process, home)
    (child,) = local_head._below(head.processes)
    assert child.is_alive
    assert local_head.end() == head
    assert process.wait(10) == -15
    assert not child.is_alive
    assert local_head.find() is None
    assert not (home / "ray").exists()


def test_a_head_that_died_is_told_and_its_id_is_nobody_elses(
    process: subprocess.Popen[bytes], home: Path
) -> None:
    head = written(process, home)
    # The same id, but the process was started at another time, or before a restart of the machine.
    (own,) = head.processes
    for changed in (
        replace(head, processes=(Process(own.pid, own.started - 1),)),
        replace(head, boot="another"),
    ):
        save(changed)
        (home / "ray").mkdir(exist_ok=True)
        with pytest.raises(UserError, match=r"started at http://127\.0\.0\.1:1 has died"):
            job_server.resolve(None)
        local_head.end()
        assert process.poll() is None, "another process was ended"


def test_what_was_written_down_is_checked(process: subprocess.Popen[bytes], home: Path) -> None:
    written(process, home)
    path = home / ".fedvsr" / "cluster" / "head.json"
    path.write_text(path.read_text().replace(str(process.pid), "1"))
    with pytest.raises(DamagedError, match="is damaged, or was edited by hand"):
        local_head.end()
    write_json(path, {"address": "x"})
    with pytest.raises(DamagedError, match="describes no head"):
        local_head.find()
