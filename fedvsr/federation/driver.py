"""The driver actor: it holds a run's event stream, so that the run outlives a terminal's pace."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedvsr.environment import let_threads_sleep
from fedvsr.errors import UserError

EventT = TypeVar("EventT")

_DONE = None


class Driver(Generic[EventT]):
    """Runs an iterator of events inside an actor, one event a call."""

    def __init__(self, start: Callable[[], Iterator[EventT]]) -> None:
        self._events = start()

    def next_event(self) -> EventT | None:
        """The next event, or None after the last."""
        return next(self._events, _DONE)


def drive(start: Callable[[], Iterator[EventT]]) -> Iterator[EventT]:
    """Run `start()` in a driver actor of the connected cluster and pass its events on.

    The actor runs on this node, so that it reads and writes the same files as this process.
    """
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    options: dict[str, Any] = {"num_cpus": 0, "max_restarts": 0, "scheduling_strategy": here}
    actor: Any = ray.remote(Driver)
    driver = actor.options(**options).remote(start)
    try:
        while (event := ray.get(driver.next_event.remote())) is not _DONE:
            yield event
    except RayTaskError as error:
        raise error.cause from error
    finally:
        ray.kill(driver)


def connect(address: str | None, object_store_bytes: int) -> None:
    """Connect to a Ray cluster, or start one on this machine for `local`.

    Args:
        address: `local`, `auto` (the cluster this machine belongs to), or `ray://HOST:PORT`; None
            is what RAY_ADDRESS says (Ray sets it inside a submitted job), else `local`.
        object_store_bytes: shared memory that a local cluster needs for a round's vectors.

    Raises:
        UserError: there is no cluster at that address.
    """
    common: dict[str, Any] = {"log_to_driver": False, "configure_logging": True}
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    if address == "local":
        # The cluster's processes inherit these. Ray lowers its workers' priority by default, which
        # starves clients on a busy machine.
        let_threads_sleep()
        os.environ.setdefault("RAY_worker_niceness", "0")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(
            address="local",
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
            "RAY_AUTH_MODE=token and, unless it is in ~/.ray/auth_token, RAY_AUTH_TOKEN_PATH"
        ) from None


def disconnect() -> None:
    """Leave the cluster; one that `connect` started on this machine ends."""
    ray.shutdown()
