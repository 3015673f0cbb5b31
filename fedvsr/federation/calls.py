"""Functions that are called on chosen nodes, each in a process that ends with its answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from fedvsr.federation.pulse import end

T = TypeVar("T")


@dataclass(frozen=True)
class Call(Generic[T]):
    """A function and the node on which it is called."""

    node_id: str
    """Ray's id of the node."""
    function: Callable[..., T]
    arguments: tuple[Any, ...] = ()
    num_gpus: float = 0
    """GPUs that it holds meanwhile."""


def answers(calls: Sequence[Call[T]], limit_s: float) -> list[T | Exception]:
    """Make calls on nodes, all at once; a process that does not answer in time is ended.

    Args:
        calls: the calls. One whose process dies is made once more.
        limit_s: seconds for all of them together, and for their nodes to have room.

    Returns:
        What each call returned, or why it returned nothing: what the function raised, TimeoutError,
        or an error of Ray's.
    """

    # A node may have another version of fedvsr: Ray sends the code of a class that is defined here.
    class Process:
        def call(self, function: Callable[..., T], *arguments: Any) -> T:
            return function(*arguments)

    # Not tasks: `ray.cancel` on one that is just answering ends the process that calls it.
    make: Any = ray.remote(num_cpus=0, max_restarts=1, max_task_retries=1)(Process)
    processes = [
        make.options(
            num_gpus=call.num_gpus,
            scheduling_strategy=NodeAffinitySchedulingStrategy(call.node_id, soft=False),
        ).remote()
        for call in calls
    ]
    refs = [
        process.call.remote(call.function, *call.arguments)
        for process, call in zip(processes, calls, strict=True)
    ]
    try:
        if refs:
            ray.wait(refs, num_returns=len(refs), timeout=limit_s)
        return [_answer(ref, limit_s) for ref in refs]
    finally:
        for process in processes:
            end(process)


def _answer(ref: Any, limit_s: float) -> Any:
    try:
        return ray.get(ref, timeout=0)
    except GetTimeoutError:
        return TimeoutError(f"no answer within {limit_s:g} s")
    except RayTaskError as error:
        return error.cause if isinstance(error.cause, Exception) else error
    except RayError as error:
        return error
