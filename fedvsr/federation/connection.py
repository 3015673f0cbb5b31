"""The connection of this process to a Ray cluster, and the start of one on this machine."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import ray

from fedvsr.environment import let_threads_sleep
from fedvsr.errors import UserError
from fedvsr.limits import ANSWER_S, ClusterGoneError, within

CONNECT_S = 60.0
"""Seconds within which Ray must start, or a cluster must answer."""
_REACH_S = 10.0
_CLIENT_PORT = 10001
# Ray puts sockets into a folder of its session; the system limits the length of their names.
_SOCKET = "ray/session_2026-01-01_00-00-00_000000_{pid}/sockets/plasma_store"
_MAX_SOCKET_BYTES = 107

_keeper: _Keeper | None = None


class _Keeper:
    """Calls `ray.init` in a thread that lives as long as the connection.

    `ray.init` may wait for ever. And the processes that it starts end with the thread that started
    them, so a start that is given up, or that fails, leaves none behind.
    """

    def __init__(self, start: Callable[[], object]) -> None:
        self._start, self._error = start, list[BaseException]()
        self._ready, self._close = threading.Event(), threading.Event()
        threading.Thread(target=self._run, name="fedvsr-ray", daemon=True).start()

    def wait(self, limit_s: float) -> None:
        """Wait until Ray has started.

        Raises:
            TimeoutError: it has not within the limit.
        """
        if not self._ready.wait(limit_s):
            self._close.set()
            raise TimeoutError(f"no answer within {limit_s:g} s")
        if self._error:
            raise self._error[0]

    def close(self) -> None:
        self._close.set()

    def _run(self) -> None:
        try:
            self._start()
        except BaseException as error:
            # Raised again by `wait`, whatever it is.
            self._error.append(error)
            return
        finally:
            self._ready.set()
        self._close.wait()


def connect(
    address: str | None,
    object_store_bytes: int,
    num_drivers: int = 1,
    limit_s: float = CONNECT_S,
) -> None:
    """Connect to a Ray cluster, or start one on this machine for `local`.

    Args:
        address: `local`, `auto` (the cluster this machine belongs to), or `ray://HOST:PORT`. None:
            the value of RAY_ADDRESS (Ray sets it inside a submitted job), or else `local`.
        object_store_bytes: shared memory that a local cluster gets for a round's vectors.
        num_drivers: runs that a local cluster executes at once.
        limit_s: seconds to wait.

    Raises:
        UserError: no cluster answers at that address, or none can be started here.
    """
    common: dict[str, Any] = {
        "log_to_driver": False,
        "configure_logging": True,
        "logging_level": logging.ERROR,
    }
    variable = os.environ.get("RAY_ADDRESS")
    # Ray, too, prefers the variable to `auto`.
    by_variable = bool(variable) and address in (None, "auto", variable)
    address = (variable if by_variable else address) or "local"
    if address == "local":
        require_temporary_folder()
        _set_up_workers()
        options: dict[str, Any] = {
            "address": "local",
            # One more per driver, because a driver waits while clients train.
            "num_cpus": (os.cpu_count() or 1) + num_drivers,
            "include_dashboard": False,
            "object_store_memory": object_store_bytes,
        }
        refusal = "Ray did not start on this machine: {}; its logs are in " + str(
            _temporary_folder()[1] / "ray" / "session_latest" / "logs"
        )
    else:
        where = f"{address!r}" + (" (RAY_ADDRESS)" if by_variable else "")
        way_out = "unset it, or" if by_variable else "start it, or"
        refusal = f"no Ray cluster answers at {where}: {{}}; {way_out} --address local"
        _require_reachable(address, refusal)
        refusal += (
            "; if it asks for a token, set RAY_AUTH_MODE=token and, unless the token is in "
            "~/.ray/auth_token, RAY_AUTH_TOKEN_PATH"
        )
        options = {"address": address}
    _keep_environment()
    # Ray 2.50 gives each user a tip about GPUs of actors without a share, which are hidden here.
    warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)
    _start(lambda: ray.init(**options, **common), refusal, limit_s)


def _start(init: Callable[[], object], refusal: str, limit_s: float) -> None:
    global _keeper
    keeper = _Keeper(init)
    try:
        keeper.wait(limit_s)
    except TimeoutError as error:
        # Ray is half started: see `ClusterGoneError`.
        raise ClusterGoneError(refusal.format(error)) from None
    except Exception as error:
        # `ray.init` raises nearly anything if it cannot start or connect.
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise UserError(refusal.format(lines[0] if lines else type(error).__name__)) from error
    _keeper = keeper
    _mute()
    if threading.current_thread() is threading.main_thread():
        # Again, because Ray has put a handler of its own below Python's.
        signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))


@contextmanager
def connected(
    address: str | None,
    object_store_bytes: int,
    num_drivers: int = 1,
    limit_s: float = CONNECT_S,
) -> Iterator[None]:
    """Be connected inside; see `connect` and `disconnect`.

    A process that is connected already, such as a notebook's, stays so, and keeps its cluster.

    Raises:
        UserError: see `connect`; or it is connected already, and `address` names another.
    """
    if ray.is_initialized():
        if address not in (None, "auto"):
            raise UserError(
                f"this process is connected to a Ray cluster already, and is to use {address!r}; "
                "call ray.shutdown() first, or name no address"
            )
        yield
        return
    connect(address, object_store_bytes, num_drivers, limit_s)
    gone = False
    try:
        yield
    except ClusterGoneError:
        gone = True
        raise
    finally:
        disconnect(gone)


def here() -> str:
    """Ray's id of this process's node, where the driver must run: it needs the same files."""
    return str(ray.get_runtime_context().get_node_id())


def disconnect(gone: bool = False) -> None:
    """Leave the cluster; a cluster that `connect` started on this machine ends.

    Args:
        gone: the cluster does not answer any more, so nothing is said to it.
    """
    global _keeper
    if not gone:
        with suppress(TimeoutError):
            within(ANSWER_S, ray.shutdown)
    if _keeper:
        _keeper.close()
    _keeper = None


def require_temporary_folder() -> None:
    """Check the folder in which a cluster of this machine keeps its sockets and logs.

    Raises:
        UserError: its name is too long, or it cannot be written.
    """
    name, folder = _temporary_folder()
    known = f"{name} = {folder}" if name else str(folder)
    if not folder.is_absolute():
        raise UserError(f"{known}: Ray needs an absolute path there; unset it, or give one")
    socket_path = folder / _SOCKET.format(pid=os.getpid())
    too_long = len(os.fsencode(socket_path)) - _MAX_SOCKET_BYTES
    if too_long > 0:
        raise UserError(
            f"{known}: the path is {too_long} bytes too long for Ray's sockets; set RAY_TMPDIR to "
            "a shorter folder that can be written, e.g. RAY_TMPDIR=/tmp"
        )
    try:
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryDirectory(dir=folder / "ray").cleanup()
    except OSError as error:
        raise UserError(
            f"{known}: Ray cannot write there ({error.strerror}); set RAY_TMPDIR to a short folder "
            "that can be written, e.g. RAY_TMPDIR=/tmp"
        ) from None


def _temporary_folder() -> tuple[str, Path]:
    """The folder that Ray takes, and the variable that names it, if any."""
    for name in ("RAY_TMPDIR", "TMPDIR"):
        if name in os.environ:
            return name, Path(os.environ[name])
    return "", Path("/tmp")


def _require_reachable(address: str, refusal: str) -> None:
    """Refuse an address where nothing listens; Ray would wait for many minutes."""
    match = re.fullmatch(r"(ray://)?(\[[^]]+\]|[^:/@]+)(?::(\d+))?", address)
    if not match or not (match[1] or match[3]):
        # `auto`, or something that Ray refuses.
        return
    try:
        target = match[2].strip("[]"), int(match[3] or _CLIENT_PORT)
        socket.create_connection(target, timeout=_REACH_S).close()
    except (OSError, OverflowError) as error:
        raise UserError(refusal.format(getattr(error, "strerror", None) or error)) from None


def _set_up_workers() -> None:
    """Settings that the processes of a new cluster inherit."""
    let_threads_sleep()
    # By default Ray lowers its workers' priority, which starves clients on a busy machine.
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")


def _keep_environment() -> None:
    """Keep Ray from building an environment for its workers if `uv run` has started this process.

    Ray would send the current folder to them, with all videos and results in it, and refuses more
    than 500 MB. Its workers use the nodes' own environment in any case.
    """
    if "RAY_ENABLE_UV_RUN_RUNTIME_ENV" not in os.environ:
        # Ray has read the variable when it was imported.
        constants: Any = ray._private.ray_constants
        constants.RAY_ENABLE_UV_RUN_RUNTIME_ENV = False


def _mute() -> None:
    """Keep Ray from printing pages of its own log when a process of the cluster dies."""
    # It has no setting for that. A client (`ray://`) prints none.
    with suppress(AttributeError):
        worker: Any = ray._private.worker.global_worker
        worker.threads_stopped.set()
        worker.gcs_error_subscriber.close()
