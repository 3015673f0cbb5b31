"""The driver actor, which holds a run's event stream: a slow terminal does not hold up the run."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, OutOfMemoryError, RayActorError, RayTaskError
from ray.util.metrics import Counter, Gauge

from fedvsr.environment import let_threads_sleep
from fedvsr.errors import UserError
from fedvsr.federation.placement import Placement

EventT = TypeVar("EventT")
Start = Callable[[threading.Event], Iterator[EventT]]
"""Starts a stream of events, which ends with KeyboardInterrupt soon after the argument is set."""
Measure = Callable[[EventT], Mapping[str, float]]
"""Values of an event for a monitor, by metric; those named `*_total` are added up."""

_DONE = None
# Time to save the state of the last finished round.
_GRACE_S = 60.0


class Driver(Generic[EventT]):
    """Runs an iterator of events inside an actor, one event a call."""

    def __init__(self, start: Start[EventT], measure: Measure[EventT], run_id: str) -> None:
        # Ray shows an actor without a GPU share every GPU of its node.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        self._stop = threading.Event()
        self._events = start(self._stop)
        self._measure, self._run_id = measure, run_id
        self._metrics = dict[str, Any]()

    def next_event(self) -> EventT | None:
        """The next event, or None after the last."""
        try:
            event = next(self._events, _DONE)
        except KeyboardInterrupt:
            if not self._stop.is_set():
                raise
            return _DONE
        if event is not _DONE:
            for name, value in self._measure(event).items():
                self._export(name, value)
        return event

    def stop(self) -> None:
        """Ask the stream to end; may be called while `next_event` runs."""
        self._stop.set()

    def _export(self, name: str, value: float) -> None:
        kind = Counter if name.endswith("_total") else Gauge
        if name not in self._metrics:
            self._metrics[name] = kind(name, tag_keys=("run_id",))
        metric = self._metrics[name]
        tags = {"run_id": self._run_id}
        if kind is Gauge:
            metric.set(value, tags)
        elif value > 0:
            metric.inc(value, tags)


def drive(
    start: Start[EventT],
    placement: Placement,
    measure: Measure[EventT] = lambda _: {},
    run_id: str = "",
    max_restarts: int = 0,
) -> Iterator[EventT]:
    """Run `start(stop)` in a driver actor of the connected cluster, and yield its events.

    If the consumer stops reading, the stream is asked to stop and given time to save its state.

    Args:
        start: starts the stream, or resumes it after the driver died.
        placement: its first bundle is the driver's.
        measure: what to export to Ray's metrics.
        run_id: tag of the metrics.
        max_restarts: how often a dead driver is replaced.
    """
    make: Any = ray.remote(concurrency_groups={"control": 1})  # type: ignore[call-overload]
    remote = make(Driver)
    options = placement.options(0, num_gpus=0)
    for restarts_left in range(max_restarts, -1, -1):
        driver = remote.options(**options).remote(start, measure, run_id)
        try:
            while (event := ray.get(driver.next_event.remote())) is not _DONE:
                yield event
            return
        except RayTaskError as error:
            raise error.cause from error
        except (RayActorError, OutOfMemoryError):
            if not restarts_left:
                raise
        except (GeneratorExit, KeyboardInterrupt):
            _stop(driver)
            raise
        finally:
            ray.kill(driver)


def _stop(driver: Any) -> None:
    driver.stop.options(concurrency_group="control").remote()
    try:
        while ray.get(driver.next_event.remote(), timeout=_GRACE_S) is not _DONE:
            pass
    except (RayTaskError, RayActorError, OutOfMemoryError, GetTimeoutError):
        # The driver is killed next; its checkpoints are whole.
        pass


def connect(address: str | None, object_store_bytes: int, num_drivers: int = 1) -> None:
    """Connect to a Ray cluster, or start one on this machine for `local`.

    Args:
        address: `local`, `auto` (the cluster this machine belongs to), or `ray://HOST:PORT`. None:
            the value of RAY_ADDRESS (Ray sets it inside a submitted job), or else `local`.
        object_store_bytes: shared memory that a local cluster gets for a round's vectors.
        num_drivers: runs that a local cluster executes at once.

    Raises:
        UserError: no cluster answers at that address.
    """
    with _sigterm_kept():
        _connect(address, object_store_bytes, num_drivers)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep the caller's SIGTERM handler, which `ray.init` would replace."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)


def _connect(address: str | None, object_store_bytes: int, num_drivers: int) -> None:
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": True}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # The cluster's processes inherit these settings. By default Ray lowers its workers'
        # priority, which starves clients on a busy machine.
        let_threads_sleep()
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
            # One more per driver, because a driver waits while clients train.
            num_cpus=(os.cpu_count() or 1) + num_drivers,
            include_dashboard=False,
            object_store_memory=object_store_bytes,
            logging_level=logging.ERROR,
            **common,
        )
        return
    try:
        ray.init(address=address, logging_level=logging.ERROR, **common)
    except ConnectionError as error:
        raise UserError(
            f"no Ray cluster answers at {address!r}: {error}; if it asks for a token, set "
            "RAY_AUTH_MODE=token and, unless the token is in ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH"
        ) from None


def here() -> str:
    """Ray's id of this process's node, where the driver must run: it needs the same files."""
    return str(ray.get_runtime_context().get_node_id())


def disconnect() -> None:
    """Leave the cluster; a cluster that `connect` started on this machine ends."""
    ray.shutdown()
