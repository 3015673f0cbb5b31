"""A job server that accepts connections and then says nothing, on this machine."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedvsr.cluster import job_server, jobs, stream
from fedvsr.cluster.jobs import Jobs
from fedvsr.errors import UserError
from tests.unit.cli.test_cli import fedvsr
from tests.unit.cluster.server import JOB, SSL_WARNING, Server

pytestmark = pytest.mark.filterwarnings(SSL_WARNING)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    # Limits of a test: so much less than a round, and so much more than an answer on loopback.
    monkeypatch.setattr(stream, "QUIET_S", 0.3)
    monkeypatch.setattr(jobs, "ANSWER_S", 1.0)
    monkeypatch.setattr(jobs, "_ASK_S", 5.0)
    monkeypatch.setattr(jobs, "_SUBMIT_S", 5.0)
    running = Server()
    yield running
    running.close()


def follow(server: Server) -> str:
    said = list[str]()
    job = Jobs(server.address).follow(JOB, said.append)
    assert job.status == "SUCCEEDED"
    return "".join(said)


def test_a_job_that_prints_nothing_for_long_is_followed_to_its_end(server: Server) -> None:
    server.logs = [("one\n|PAUSE|two\n|END", True)]
    assert follow(server) == "one\ntwo\n"
    # Its pause was longer than the limit, so its state was asked for.
    assert server.num_asked >= 3


def test_a_server_that_stops_answering_ends_the_display(
    server: Server, capsys: pytest.CaptureFixture[str]
) -> None:
    server.logs = [("round 1\n|FREEZE", False)]
    began = time.monotonic()
    assert fedvsr("logs", JOB, "--follow", "--address", server.address) == 2
    assert time.monotonic() - began < 10
    printed = capsys.readouterr()
    assert printed.out == "round 1\n"
    assert printed.err.count("\n") == 1
    assert printed.err.startswith(
        f"error: no Ray job server answers at {server.address} (no answer"
    )


def test_a_log_that_stops_before_its_jobs_end_is_asked_for_again(server: Server) -> None:
    # The first connection neither goes on nor closes, as behind a router that has forgotten it.
    server.logs = [("one\n|END", False), ("one\ntwo\n", True)]
    assert follow(server) == "one\ntwo\n"
    assert server.logs == []


def test_a_log_that_never_ends_is_given_up(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_MAX_BREAKS", 2)
    server.status, server.logs = "SUCCEEDED", [("", False)] * 2
    with pytest.raises(UserError, match="the job has ended, but its log stopped before the end"):
        follow(server)


@pytest.mark.parametrize("log", ["FREEZE", "noise\n|PAUSE|FREEZE"])
def test_a_fetch_ends_if_the_server_stops_answering(
    log: str, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.logs = [(log, False)]
    began = time.monotonic()
    assert fedvsr("fetch", JOB, "--address", server.address, "--out", str(tmp_path)) == 2
    # It does not ask a server that is silent to end the sender, for another limit.
    assert time.monotonic() - began < 5
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "no answer within 1 s" in error
    assert list(tmp_path.iterdir()) == []


def test_a_fetch_ends_if_its_log_stops(server: Server, tmp_path: Path) -> None:
    server.logs = [("noise\n|END", False)]
    with pytest.raises(UserError, match="its log stopped before the end"):
        Jobs(server.address).fetch(JOB, tmp_path, False, "python")
    assert server.status == "STOPPED", "the sender is ended"


@pytest.mark.parametrize(
    "command",
    [
        ("jobs",),
        ("logs", JOB),
        ("logs", JOB, "--follow"),
        ("stop", JOB),
        ("fetch", JOB, "--out", "{out}"),
        ("submit", "demo", "--out", "/results"),
    ],
)
def test_a_server_that_accepts_and_says_nothing_is_given_up(
    command: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(jobs, "_ASK_S", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}"
        words = [word.format(out=tmp_path / "out") for word in command]
        assert fedvsr(*words, "--address", address) == 2
    error = capsys.readouterr().err
    assert error == f"error: {job_server.NoAnswerError(address, 'no answer within 0.5 s')}\n"
    assert not (tmp_path / "out").exists()


def test_an_upload_that_is_not_answered_is_given_up(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "_SUBMIT_S", 0.5)
    client = Jobs(server.address)
    server.is_silent = True
    (tmp_path / "run.yaml").touch()
    with pytest.raises(UserError, match=r"no answer within 0\.5 s"):
        client.submit("true", tmp_path, "demo")
