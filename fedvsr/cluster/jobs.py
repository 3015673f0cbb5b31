"""Experiments as jobs of a Ray cluster, through the job server of its head, over HTTP alone."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import secrets
import shlex
import shutil
import socket
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from fedvsr.cluster import archive as run_archive
from fedvsr.errors import UserError
from fedvsr.files import replacing_folder

# Ray kills a job so long after it asked it to stop (default 3 s): a run first saves its state.
STOP_WAIT_S = 60
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
_ENV_VARS = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S)}
_MARK = "fedvsr"
_TALKATIVE = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)
_CONNECT_S = 10
_POLL_S = 0.5
_MAX_BREAKS = 5
# What `fedvsr run` prints first.
_RUN_FOLDER = re.compile(r"^run folder: (/.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Job:
    """A job of the cluster."""

    job_id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    started_at: datetime | None
    wall_s: float | None
    """So far, or in all."""
    command: str
    exit_code: int | None
    """What a shell would say; None while it is not over. 130 if it was stopped."""


class Jobs:
    """The job server of a cluster's head."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: `http://HEAD:8265`; None is what RAY_API_SERVER_ADDRESS says, or RAY_ADDRESS if
                it is such an address, else this machine's.

        Raises:
            UserError: nothing answers there, or it asks for a token.
        """
        self.address = _resolve(address)
        _require_answer(self.address)
        # Imported late, as the tokens of the environment are read with it.
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        with _explained(self.address), _address_alone():
            self._client = JobSubmissionClient(self.address)

    def submit(self, command: str, working_dir: Path | None, name: str) -> str:
        """Start a job and return its id.

        Args:
            command: the shell command, run in the working directory on the head.
            working_dir: shipped to every node; None ships nothing.
            name: begins the id.

        Raises:
            UserError: the cluster refuses it.
        """
        job_id = new_id(name)
        runtime_env: dict[str, Any] = {"env_vars": dict(_ENV_VARS)}
        if working_dir is not None:
            runtime_env["working_dir"] = str(working_dir)
        with _explained(self.address):
            return self._client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata={_MARK: name},
            )

    def list(self) -> list[Job]:
        """The cluster's jobs that this program submitted, oldest first."""
        with _explained(self.address):
            found = self._client.list_jobs()
        ours = [job for job in found if job.submission_id and _MARK in (job.metadata or {})]
        return [_job(details) for details in sorted(ours, key=lambda job: job.start_time or 0)]

    def get(self, job_id: str) -> Job:
        """A job.

        Raises:
            UserError: there is none of this id.
        """
        with _explained(self.address, job_id):
            return _job(self._client.get_job_info(job_id))

    def logs(self, job_id: str) -> str:
        """All that a job has printed so far."""
        with _explained(self.address, job_id):
            return str(self._client.get_job_logs(job_id))

    def follow(self, job_id: str, say: Callable[[str], object]) -> Job:
        """Pass on what a job prints, from its first line, until it is over.

        Raises:
            UserError: the connection broke, and could not be made again.
        """
        self.get(job_id)
        from aiohttp import ClientError

        said = 0

        async def tail() -> None:
            nonlocal said
            seen = 0
            async for text in self._client.tail_job_logs(job_id):
                # After a break the log comes again from its first line.
                say(text[max(0, said - seen) :])
                seen += len(text)
                said = max(said, seen)

        breaks = 0
        while True:
            whole, before = True, said
            with _explained(self.address, job_id):
                try:
                    asyncio.run(tail())
                except (RuntimeError, OSError, ClientError):
                    whole, breaks = False, breaks + 1 if said == before else 1
                    if breaks == _MAX_BREAKS:
                        raise
                    time.sleep(breaks)
            # The server also ends a log in good order where it loses the job's own node.
            if whole and (job := self.get(job_id)).exit_code is not None:
                return job
            time.sleep(_POLL_S)

    def wait(self, job_id: str) -> Job:
        """The job when it is over."""
        while (job := self.get(job_id)).exit_code is None:
            time.sleep(_POLL_S)
        return job

    def stop(self, job_id: str) -> Job:
        """Ask a job to stop, and wait until it has; it is killed after `STOP_WAIT_S`."""
        with _explained(self.address, job_id):
            self._client.stop_job(job_id)
        return self.wait(job_id)

    def run_folder(self, job_id: str) -> str:
        """The folder on the cluster that a job's run writes.

        Raises:
            UserError: the job has not come so far.
        """
        found = _RUN_FOLDER.search(self.logs(job_id))
        if found is None:
            job = self.get(job_id)
            raise UserError(
                f"{job_id} is {job.status} and has begun no run; `fedvsr logs {job_id}` says why"
            )
        return found[1]

    def fetch(self, job_id: str, out: Path, checkpoints: bool, python: str) -> tuple[Path, int]:
        """Copy the folder of a job's run to `out`, whole and checked, over what is there.

        A job of seconds on the head reads it there, so it needs no shared file system.

        Args:
            job_id: the job.
            out: the folder that gets `<run id>/`.
            checkpoints: copy `checkpoints/` too.
            python: the head's interpreter.

        Returns:
            The run's folder here, and the number of files in it.

        Raises:
            UserError: there is no such run, or the copy is not whole.
        """
        source = self.run_folder(job_id)
        out.mkdir(parents=True, exist_ok=True)
        command = [python, "run_archive.py", source, *(["--checkpoints"] if checkpoints else [])]
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(run_archive.__file__, Path(folder) / "run_archive.py")
            sender = self.submit(shlex.join(command), Path(folder), f"fetch-{job_id}"[:60])
        try:
            with tempfile.TemporaryFile(dir=out) as file:
                try:
                    num_files = run_archive.read(self._lines(sender), file)
                except ValueError as error:
                    raise UserError(f"{source} could not be fetched: {error}") from None
                target = out / Path(source).name
                with replacing_folder(target) as aside, zipfile.ZipFile(file) as archive:
                    archive.extractall(aside)
        finally:
            # It is over, unless this was interrupted.
            self.stop(sender)
            with _explained(self.address, sender):
                self._client.delete_job(sender)
        return target, num_files

    def _lines(self, job_id: str) -> Iterator[str]:
        """A job's log, line by line, as it comes."""
        loop = asyncio.new_event_loop()
        chunks = self._client.tail_job_logs(job_id)
        rest = ""
        try:
            with _explained(self.address, job_id):
                while (text := loop.run_until_complete(anext(chunks, None))) is not None:
                    *whole, rest = (rest + text).split("\n")
                    yield from whole
            yield rest
        finally:
            loop.run_until_complete(chunks.aclose())  # type: ignore[attr-defined]
            loop.close()


def new_id(name: str) -> str:
    """A job's id: what it runs, when, and what sets it apart."""
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{name}-{now}-{secrets.token_hex(2)}"


def shell_command(arguments: Sequence[str]) -> str:
    """Arguments as a line for the shell on the head, which expands a leading `~/`."""
    return " ".join(
        "~/" + shlex.quote(argument[2:]) if argument.startswith("~/") else shlex.quote(argument)
        for argument in arguments
    )


def ray_command(address: str, working_dir: str, arguments: Sequence[str]) -> str:
    """The line that submits the same job by Ray's own command."""
    environment = json.dumps({"env_vars": _ENV_VARS})
    options = ["--address", address, "--working-dir", working_dir]
    options += ["--runtime-env-json", environment]
    return shlex.join(["ray", "job", "submit", *options, "--", *arguments])


def _job(details: Any) -> Job:
    status = str(details.status)
    started = details.start_time / 1000 if details.start_time else None
    ended = (details.end_time or time.time() * 1000) / 1000
    return Job(
        job_id=details.submission_id or details.job_id,
        status=status,
        started_at=None if started is None else datetime.fromtimestamp(started, timezone.utc),
        wall_s=None if started is None else max(0.0, ended - started),
        command=details.entrypoint,
        exit_code=_exit_code(status, details.driver_exit_code),
    )


def _exit_code(status: str, code: int | None) -> int | None:
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 130
    if status != "FAILED":
        return None
    # A negative one is a signal; none at all means that the command never started.
    return 1 if code is None else code if code > 0 else 128 - code


def _resolve(address: str | None) -> str:
    said: Mapping[str, str] = os.environ
    by_ray = said.get("RAY_ADDRESS", "")
    address = address or said.get("RAY_API_SERVER_ADDRESS")
    address = address or (by_ray if by_ray.startswith("http") else DEFAULT_ADDRESS)
    parts = urlsplit(address)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise UserError(
            f"--address {address}: jobs go to the job server of the cluster's head: http://HEAD:8265"
        )
    return address.rstrip("/")


def _require_answer(address: str) -> None:
    """Within seconds: Ray's own client waits minutes for a host that drops packets."""
    parts = urlsplit(address)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        socket.create_connection((parts.hostname, port), timeout=_CONNECT_S).close()
    except OSError as error:
        raise UserError(_no_answer(address, str(error))) from None


def _no_answer(address: str, reason: str) -> str:
    return (
        f"no Ray job server answers at {address} ({reason}); is the head up, and its port "
        "forwarded (ssh -N -L 8265:127.0.0.1:8265 HEAD)?"
    )


@contextmanager
def _address_alone() -> Iterator[None]:
    """Ray lets these override an address that is given."""
    names = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(before)


@contextmanager
def _explained(address: str, job_id: str | None = None) -> Iterator[None]:
    """Turn what Ray's client raises into one line."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        text = str(error).strip()
        # By name: releases of Ray before token authentication lack the class.
        if type(error).__name__ == "AuthenticationError":
            wrong = "failed" in text.partition("\n")[0]
            raise UserError(
                f"the cluster at {address} "
                f"{'refuses this token' if wrong else 'asks for a token'}: set RAY_AUTH_MODE=token "
                "and RAY_AUTH_TOKEN_PATH=FILE, a file with the head's token (default "
                "~/.ray/auth_token)"
            ) from None
        if isinstance(error, ConnectionError) or "Connection" in type(error).__name__:
            raise UserError(_no_answer(address, type(error).__name__)) from None
        if "status code 404" in text and job_id is not None:
            raise UserError(
                f"{address} has no job {job_id}; `fedvsr jobs` lists those there are"
            ) from None
        if "status code 413" in text:
            raise UserError(
                "the job's package is larger than Ray takes (100 MiB); put large files where all "
                "nodes read them"
            ) from None
        if isinstance(error, RuntimeError):
            last = [line for line in text.splitlines() if line.strip()][-1:] or [""]
            raise UserError(f"{address}: {last[0].strip()}") from None
        raise
