"""The driver actor, which holds a run's event stream: a slow terminal does not hold up the run."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, wait
from contextlib import suppress
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.util.metrics import Counter, Gauge

from fedvsr.federation.connection import here
from fedvsr.federation.placement import Placement, require_node
from fedvsr.federation.pulse import CONTROL, Pulse, SilentError, end
from fedvsr.limits import ClusterGoneError, within

EventT = TypeVar("EventT")
Start = Callable[[threading.Event], Iterator[EventT]]
"""Starts a stream of events, which ends with KeyboardInterrupt soon after the argument is set."""
Measure = Callable[[EventT], Mapping[str, float]]
"""Values of an event for a monitor, by metric; those named `*_total` are added up."""

_DONE = None
# Time to save the state of the last finished round; and if Ray may end the process in between.
_GRACE_S, _SHORT_GRACE_S = 60.0, 15.0
# Seconds between two checks while an event is awaited, and between two looks at the cluster.
POLL_S, _LOOK_S = 1.0, 5.0


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

    def ping(self) -> None:
        """Answer; see `Pulse`."""

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

    Raises:
        ClusterGoneError: the cluster does not answer any more, or this node's part of it has died.
    """
    make: Any = ray.remote(concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
    remote = make(Driver)
    options = placement.options(0, num_gpus=0)
    for restarts_left in range(max_restarts, -1, -1):
        driver = remote.options(**options).remote(start, measure, run_id)
        watch = _Watch(Pulse(driver), here())
        gone = False
        try:
            while (event := _next(driver, watch)) is not _DONE:
                yield event
            return
        except ClusterGoneError:
            gone = True
            # Its process may live on, and then saves its state.
            _stop(driver, _SHORT_GRACE_S)
            raise
        except RayTaskError as error:
            gone = isinstance(error.cause, ClusterGoneError)
            raise error.cause from error
        except (RayActorError, OutOfMemoryError, SilentError):
            if not restarts_left:
                raise
        except (GeneratorExit, KeyboardInterrupt):
            _stop(driver, _GRACE_S)
            raise
        finally:
            if not gone:
                end(driver)


class _Watch:
    """What could end the wait for a driver: the cluster is gone, or the driver is silent."""

    def __init__(self, pulse: Pulse, node: str) -> None:
        self._pulse, self._node = pulse, node
        self._looked = time.monotonic()

    def check(self) -> None:
        """Look at the cluster, now and then, and at the driver.

        Raises:
            ClusterGoneError: the cluster does not answer, or this node is no part of it any more.
            SilentError: the driver does not answer.
        """
        self._pulse.check()
        if time.monotonic() - self._looked > _LOOK_S:
            require_node(self._node)
            self._looked = time.monotonic()


def _next(driver: Any, watch: _Watch | None = None) -> Any:
    """The driver's next event."""
    # Not `ray.get`: it would end this process without a word if the raylet has died.
    event: Future[Any] = driver.next_event.remote().future()
    while not wait([event], timeout=POLL_S).done:
        if watch:
            watch.check()
    return event.result()


def _stop(driver: Any, grace_s: float) -> None:
    """Ask the driver to save its state and to end, and wait for that."""

    def drain() -> None:
        # Wait, so that the next event is asked for after it.
        stopped: Future[None] = driver.stop.options(concurrency_group=CONTROL).remote().future()
        stopped.result()
        while _next(driver) is not _DONE:
            pass

    # Otherwise the driver is killed next; its checkpoints are whole.
    with suppress(RayTaskError, RayActorError, OutOfMemoryError, TimeoutError):
        within(grace_s, drain)
