"""A Ray head on this machine's loopback address, for a first try: `fedvsr cluster up` and `down`.

What was started is written down with the processes' ids and start times, so that only they are
ended, and the other commands find the head and its token by themselves.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from fedvsr.checked_text import read_json, write_json
from fedvsr.environment import SLEEPING_THREADS
from fedvsr.errors import DamagedError, UserError
from fedvsr.limits import ANSWER_S

HOST = "127.0.0.1"
# Seconds that a head may take to start, and its processes to end when they are asked to.
_START_S, _END_S, _POLL_S = 90.0, 30.0, 0.2
_PORTS = range(20_000, 32_768)
_STATE, _TOKEN, _LOG, _LOCK = "head.json", "token", "head.log", ".lock"


@dataclass(frozen=True)
class Process:
    """A process of this machine, which no later one with the same id is taken for."""

    pid: int
    started: int
    """In clock ticks after the machine's start."""

    @property
    def is_alive(self) -> bool:
        """Whether it runs."""
        return _started(self.pid) == self.started

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it is alive."""
        with suppress(ProcessLookupError):
            if self.is_alive:
                os.kill(self.pid, number)


@dataclass(frozen=True)
class LocalHead:
    """A head that `start` has started."""

    address: str
    """URL of its job server."""
    control_address: str
    """HOST:PORT for a driver."""
    ray_folder: str
    boot: str
    """Id of the start of the machine since which it runs."""
    processes: tuple[Process, ...]
    """The head's own process, and then those that it has started."""

    @property
    def is_alive(self) -> bool:
        """Whether the head's own process runs."""
        return self.boot == _boot() and self.processes[0].is_alive

    @property
    def variables(self) -> dict[str, str]:
        """The environment of a program that connects to it."""
        return _variables()


def start(num_cpus: int) -> LocalHead:
    """Start a head that asks for a token, and wait until it answers.

    Args:
        num_cpus: processors that it offers.

    Raises:
        UserError: one runs already, or it does not start.
    """
    with _locked():
        known = _read()
        if known and known.is_alive:
            raise UserError(
                f"a head runs already, at {known.address}; `fedvsr cluster down` ends it"
            )
        if known:
            _clear(known)
        descriptor = os.open(_folder() / _TOKEN, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        # It holds sockets, whose paths must be short.
        ray_folder = tempfile.mkdtemp(prefix="fedvsr-", dir="/tmp")
        dashboard, control, agent, client = _free_ports(4)
        command = [
            *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
            *("--node-ip-address", HOST, "--port", str(control), "--num-cpus", str(num_cpus)),
            *("--include-dashboard", "true", "--dashboard-host", HOST),
            *("--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)),
            *("--ray-client-server-port", str(client), "--temp-dir", ray_folder),
            "--disable-usage-stats",
        ]
        with (_folder() / _LOG).open("w") as log:
            process = subprocess.Popen(
                command,
                env=_environment(),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=Path.home(),
                start_new_session=True,
            )
        address, own = f"http://{HOST}:{dashboard}", Process(process.pid, _started(process.pid))
        head = LocalHead(address, f"{HOST}:{control}", ray_folder, _boot(), (own,))
        try:
            _wait(address, process)
            head = LocalHead(**{**vars(head), "processes": (own, *_below([own]))})
            write_json(_folder() / _STATE, asdict(head))
        except BaseException:
            # Ctrl-C too: a head that nobody knows of must not stay.
            _clear(head)
            raise
        return head


def end() -> LocalHead:
    """End the head and all that it has started, and return what it was.

    Raises:
        UserError: there is none, or a process of it does not end.
    """
    with _locked():
        head = _read()
        if head is None:
            raise UserError("no head was started here; `fedvsr cluster up` starts one")
        _clear(head)
        return head


def find() -> LocalHead | None:
    """The head that runs here; None if none was started.

    Raises:
        UserError: it was started and has died.
    """
    head = _read()
    if head and not head.is_alive:
        raise UserError(
            f"the head that `fedvsr cluster up` started at {head.address} has died (its log: "
            f"{_folder() / _LOG}); `fedvsr cluster up` starts another, `down` only clears up"
        )
    return head


def show_token(address: str) -> None:
    """Give this process the token of the head, if that is the one at `address`.

    It has no effect after Ray has been imported.
    """
    with suppress(DamagedError):
        head = _read()
        if head and head.address == address and "RAY_AUTH_MODE" not in os.environ:
            os.environ.update(head.variables)


def _clear(head: LocalHead) -> None:
    """End what is left of a head, and remove its files."""
    if head.boot == _boot():
        left = [process for process in head.processes if process.is_alive]
        left += _below(left)
        for number, ended in ((signal.SIGTERM, left[:1]), (signal.SIGTERM, left), (9, left)):
            for process in ended:
                process.send(signal.Signals(number))
            deadline = time.monotonic() + (_END_S if left else 0)
            while left and time.monotonic() < deadline:
                left = [process for process in left if process.is_alive]
                time.sleep(_POLL_S)
        if left:
            pids = ", ".join(str(process.pid) for process in left)
            raise UserError(f"these processes of the head do not end: {pids}")
    shutil.rmtree(head.ray_folder, ignore_errors=True)
    for name in (_STATE, _TOKEN):
        (_folder() / name).unlink(missing_ok=True)


def _folder() -> Path:
    folder = Path.home() / ".fedvsr" / "cluster"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _read() -> LocalHead | None:
    """What was written down.

    Raises:
        DamagedError: it is not as it was written.
    """
    path = Path.home() / ".fedvsr" / "cluster" / _STATE
    try:
        table = read_json(path)
        processes = tuple(Process(**process) for process in table.pop("processes"))
        return LocalHead(**table, processes=processes)
    except FileNotFoundError:
        return None
    except (KeyError, TypeError):
        raise DamagedError(path, "is damaged: it describes no head") from None


@contextmanager
def _locked() -> Iterator[None]:
    try:
        with FileLock(_folder() / _LOCK, timeout=0):
            yield
    except Timeout:
        raise UserError("another `fedvsr cluster up` or `down` is at work; wait for it") from None


def _variables() -> dict[str, str]:
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(_folder() / _TOKEN)}


def _environment() -> dict[str, str]:
    """The head's environment. Jobs find this Python first, whatever has made its environment."""
    own = {k: v for k, v in os.environ.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN")}
    return {
        **SLEEPING_THREADS,
        "RAY_worker_niceness": "0",
        **own,
        **_variables(),
        "PATH": f"{Path(sys.executable).parent}:{os.environ.get('PATH', os.defpath)}",
    }


def _wait(address: str, process: subprocess.Popen[bytes]) -> None:
    """Wait until the job server answers.

    Raises:
        UserError: the head has ended, or does not answer in time.
    """
    token = (_folder() / _TOKEN).read_text()
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {token}"}
    )
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            lines = (_folder() / _LOG).read_text(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            raise UserError(f"the head ended while it started: {last} (log: {_folder() / _LOG})")
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_S):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_POLL_S)
    raise UserError(f"the head did not answer within {_START_S:g} s (log: {_folder() / _LOG})")


def _free_ports(count: int) -> list[int]:
    """Ports that are free now.

    They lie above those of Ray's workers and below those that the system gives to outgoing
    connections: one of these may be taken before the head listens on it, seconds from now.

    Raises:
        UserError: there are too few.
    """
    found = list[int]()
    for port in random.sample(_PORTS, len(_PORTS)):
        with socket.socket() as trial, suppress(OSError):
            trial.bind((HOST, port))
            found.append(port)
        if len(found) == count:
            return found
    raise UserError(f"ports {_PORTS.start} to {_PORTS.stop - 1} of {HOST} are all in use")


def _started(pid: int) -> int:
    """When a process was started, in clock ticks after the machine's start; -1 if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return -1
    return -1 if fields[0] in "ZX" else int(fields[19])


def _below(processes: Iterable[Process]) -> Sequence[Process]:
    """The processes that these have started, and those that they have, and so on."""
    parents = dict[int, int]()
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(FileNotFoundError, ProcessLookupError):
            parents[int(path.parent.name)] = int(path.read_text().rpartition(")")[2].split()[1])
    known, found = {process.pid for process in processes}, list[Process]()
    while new := {pid for pid, parent in parents.items() if parent in known} - known:
        known |= new
        found += [Process(pid, _started(pid)) for pid in new]
    return [process for process in found if process.started >= 0]


def _boot() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
