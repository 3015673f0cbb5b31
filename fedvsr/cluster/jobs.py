"""Experiments as jobs of a Ray cluster, through the HTTP job server of its head."""

from __future__ import annotations

import json
import logging
import secrets
import shlex
import shutil
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from fedvsr.cluster import archive
from fedvsr.cluster.fetch import JOB_VARIABLE, unpack
from fedvsr.cluster.job_server import (
    NoAnswerError,
    address_alone,
    explained,
    require_answer,
    resolve,
)
from fedvsr.cluster.stream import chunks
from fedvsr.errors import UserError
from fedvsr.limits import ANSWER_S, within

if TYPE_CHECKING:
    from ray.job_submission import JobDetails

# Ray kills a job this long after asking it to stop (Ray's default is 3 s): a run saves its state.
STOP_WAIT_S = 60
# Keys of a job's metadata: the name of what it runs, and the folder where `fedvsr run` writes.
_NAME, _OUT = "fedvsr", "fedvsr_out"
T = TypeVar("T")
_TALKATIVE = (
    "dashboard.modules.dashboard_sdk",
    "dashboard.modules.job.sdk",
    "_private.runtime_env.packaging",
)
# Seconds for a request; the upload of a job's package may take longer.
_ASK_S, _SUBMIT_S = 60.0, 600.0
_POLL_S = 0.5
_MAX_BREAKS = 5


@dataclass(frozen=True)
class Job:
    """A job of the cluster."""

    job_id: str
    status: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    started_at: datetime | None
    wall_s: float | None
    """Since the start, until now or until the job ended."""
    command: str
    exit_code: int | None
    """As a shell reports it: 130 if the job was stopped; None until it has ended."""
    out: str | None
    """Folder on the cluster where its run or sweep is written; None for a job that has none."""


class Jobs:
    """The job server of a cluster's head."""

    def __init__(self, address: str | None = None) -> None:
        """Connect.

        Args:
            address: `http://HEAD:8265`; None takes RAY_API_SERVER_ADDRESS, else RAY_ADDRESS if it
                is such an address, else this machine.

        Raises:
            UserError: nothing answers there, or the server asks for a token.
        """
        self.address = resolve(address)
        require_answer(self.address)
        # Imported late, as the tokens of the environment are read with it.
        from ray.job_submission import JobSubmissionClient

        for name in _TALKATIVE:
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        with address_alone():
            self._client = self._ask(lambda: JobSubmissionClient(self.address))

    def submit(
        self, command: str, working_dir: Path | None, name: str, out: str | None = None
    ) -> str:
        """Start a job and return its id.

        Args:
            command: shell command, run in the working directory on the head.
            working_dir: folder to ship to every node; None ships nothing.
            name: beginning of the id.
            out: folder on the cluster where the command writes its run, if it makes a run or sweep.

        Raises:
            UserError: the name would hide the run's folder, or the cluster refuses the job.
        """
        job_id = new_id(name)
        runtime_env: dict[str, Any] = {"env_vars": _environment(job_id)}
        if working_dir is not None:
            runtime_env["working_dir"] = str(working_dir)
        return self._ask(
            lambda: self._client.submit_job(
                entrypoint=command,
                submission_id=job_id,
                runtime_env=runtime_env,
                metadata=_metadata(name, out),
            ),
            limit_s=_SUBMIT_S,
        )

    def list(self) -> list[Job]:
        """The cluster's jobs that fedvsr submitted, oldest first."""
        jobs = self._ask(self._client.list_jobs)
        ours = [job for job in jobs if job.submission_id and _NAME in (job.metadata or {})]
        return [_job(details) for details in sorted(ours, key=lambda job: job.start_time or 0)]

    def named(self, name: str) -> str:
        """The id of a job: the name itself, or for `latest` that of the last experiment's job.

        Raises:
            UserError: there is no experiment's job.
        """
        if name != "latest":
            return name
        jobs = [job for job in self.list() if job.out is not None]
        if not jobs:
            raise UserError(f"no experiment was submitted to {self.address} yet")
        return jobs[-1].job_id

    def get(self, job_id: str) -> Job:
        """The job of an id.

        Raises:
            UserError: the cluster has no such job.
        """
        return _job(self._ask(lambda: self._client.get_job_info(job_id), job_id))

    def logs(self, job_id: str) -> str:
        """All that a job has printed so far."""
        return str(self._ask(lambda: self._client.get_job_logs(job_id), job_id))

    def follow(self, job_id: str, say: Callable[[str], object]) -> Job:
        """Pass on what a job prints, from its first line, until it ends.

        Raises:
            UserError: the server does not answer, or the connection could not be restored.
        """
        self.get(job_id)
        from aiohttp import ClientError

        num_passed_on = breaks = 0
        while True:
            complete, before, num_received = True, num_passed_on, 0
            with explained(self.address, job_id):
                try:
                    for text in self._chunks(job_id):
                        # A new connection sends the log from its first line again.
                        say(text[max(0, num_passed_on - num_received) :])
                        num_received += len(text)
                        num_passed_on = max(num_passed_on, num_received)
                except (RuntimeError, OSError, ClientError):
                    complete, breaks = False, breaks + 1 if num_passed_on == before else 1
                    if breaks == _MAX_BREAKS:
                        raise
                    time.sleep(breaks)
            # The server also ends a log without an error when it loses the job's node.
            if complete and (job := self.get(job_id)).exit_code is not None:
                return job
            time.sleep(_POLL_S)

    def wait(self, job_id: str, limit_s: float | None = None) -> Job:
        """Wait until a job has ended, and return it.

        Raises:
            UserError: it has not ended within the limit, or the server does not answer.
        """
        began = time.monotonic()
        while (job := self.get(job_id)).exit_code is None:
            if limit_s is not None and time.monotonic() - began > limit_s:
                raise UserError(f"{job_id} is still {job.status} after {limit_s:g} s")
            time.sleep(_POLL_S)
        return job

    def stop(self, job_id: str) -> Job:
        """Ask a job to stop, and wait until it has ended; Ray kills it after `STOP_WAIT_S`."""
        self._ask(lambda: self._client.stop_job(job_id), job_id)
        return self.wait(job_id, 2 * STOP_WAIT_S)

    def fetch(self, job_id: str, out: Path, checkpoints: bool, python: str) -> tuple[Path, int]:
        """Copy the folder of a job's run or sweep, whole and checked.

        A run's goes to `<out>/<run id>`, a sweep's to `<out>/sweeps/<name>`.

        A job of a few seconds reads the folder on the head, so no shared file system is needed.

        Args:
            job_id: the job.
            out: local folder of results; made if missing.
            checkpoints: copy `checkpoints/` too.
            python: the head's interpreter.

        Returns:
            The local folder, and the number of files that were copied.

        Raises:
            UserError: the job has no run or sweep, the copy is incomplete, or it would replace
                another one.
        """
        job = self.get(job_id)
        if job.out is None or not archive.is_name(job_id):
            raise UserError(
                f"{job_id} is not the job of a run or sweep, so there is nothing to fetch; "
                "`fedvsr submit` starts one"
            )
        out.mkdir(parents=True, exist_ok=True)
        command = [python, "archive.py", job.out, job_id, *(["--checkpoints"] * checkpoints)]
        try:
            with (
                self._sender(shlex.join(command), f"fetch-{job_id}"[:60]) as sender,
                tempfile.TemporaryFile(dir=out) as file,
            ):
                received = archive.read(self._lines(sender), file)
                return unpack(file, received.folder, out), received.num_files
        except archive.NoRunError:
            status = self.get(job_id).status
            raise UserError(
                f"{job_id} is {status} and has begun nothing in {job.out}; `fedvsr logs {job_id}` "
                "says why"
            ) from None
        except UserError:
            raise
        except ValueError as error:
            raise UserError(f"cannot fetch the folder of {job_id}: {error}") from None

    @contextmanager
    def _sender(self, command: str, name: str) -> Iterator[str]:
        """The id of a job that runs `archive.py` on the head; it is deleted afterwards."""
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(archive.__file__, Path(folder) / "archive.py")
            job_id = self.submit(command, Path(folder), name)
        answers = True
        try:
            yield job_id
        except NoAnswerError:
            answers = False
            raise
        finally:
            if answers:
                # It has ended, unless this was interrupted.
                self.stop(job_id)
                self._ask(lambda: self._client.delete_job(job_id), job_id)

    def _ask(
        self, call: Callable[[], T], job_id: str | None = None, limit_s: float | None = None
    ) -> T:
        """What the server answers; Ray's client itself would wait without a limit.

        Raises:
            UserError: it refuses, or does not answer.
        """
        with explained(self.address, job_id):
            try:
                return within(limit_s or _ASK_S, call)
            except TimeoutError as error:
                raise NoAnswerError(self.address, str(error)) from None

    def _chunks(self, job_id: str) -> Iterator[str]:
        """The pieces of a job's log, as they arrive."""

        def has_ended() -> bool:
            details = self._ask(lambda: self._client.get_job_info(job_id), job_id, ANSWER_S)
            return _job(details).exit_code is not None

        # Ray returns a generator, which can be closed, and declares only an iterator.
        stream = cast("AsyncGenerator[str, None]", self._client.tail_job_logs(job_id))
        return chunks(stream, has_ended)

    def _lines(self, job_id: str) -> Iterator[str]:
        """The lines of a job's log, as they arrive."""
        rest = ""
        with explained(self.address, job_id):
            for text in self._chunks(job_id):
                *whole, rest = (rest + text).split("\n")
                yield from whole
        yield rest


def new_id(name: str) -> str:
    """A new job id: the name of what it runs, the time, and four random digits.

    Raises:
        UserError: the name begins with a dot, so that `fedvsr fetch` would not copy its run.
    """
    if not archive.is_name(name):
        raise UserError(f"name = {name}: a job's name must not begin with a dot; --set name=NAME")
    now = datetime.now(timezone.utc).strftime("%Y%m%d-%H%M%S")
    return f"{name}-{now}-{secrets.token_hex(2)}"


def shell_command(arguments: Sequence[str]) -> str:
    """Quote arguments for the shell on the head, which expands a leading `~/`."""
    return " ".join(
        "~/" + shlex.quote(argument[2:]) if argument.startswith("~/") else shlex.quote(argument)
        for argument in arguments
    )


def ray_command(
    address: str, working_dir: str, arguments: Sequence[str], name: str, out: str
) -> str:
    """The `ray job submit` line that submits the same job, with a new id at each call."""
    job_id = new_id(name)
    options = ["--address", address, "--working-dir", working_dir, "--submission-id", job_id]
    options += ["--runtime-env-json", json.dumps({"env_vars": _environment(job_id)})]
    options += ["--metadata-json", json.dumps(_metadata(name, out))]
    return shlex.join(["ray", "job", "submit", *options, "--", *arguments])


def _environment(job_id: str) -> dict[str, str]:
    return {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), JOB_VARIABLE: job_id}


def _metadata(name: str, out: str | None) -> dict[str, str]:
    return {_NAME: name} | ({} if out is None else {_OUT: out})


def _job(details: JobDetails) -> Job:
    status = str(details.status)
    started = details.start_time / 1000 if details.start_time else None
    ended = (details.end_time or time.time() * 1000) / 1000
    return Job(
        job_id=details.submission_id or details.job_id or "",
        status=status,
        started_at=None if started is None else datetime.fromtimestamp(started, timezone.utc),
        wall_s=None if started is None else max(0.0, ended - started),
        command=details.entrypoint,
        exit_code=_exit_code(status, details.driver_exit_code),
        out=(details.metadata or {}).get(_OUT),
    )


def _exit_code(status: str, code: int | None) -> int | None:
    if status == "SUCCEEDED":
        return 0
    if status == "STOPPED":
        return 130
    if status != "FAILED":
        return None
    # A negative code is a signal; None means that the command never started.
    return 1 if code is None else code if code > 0 else 128 - code
