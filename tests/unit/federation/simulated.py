"""The executor on a cluster that exists only as numbers: a clock, slots, and how long clients take.

The executor, its queues and its pool of actors are the real ones; what Ray does is simulated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from fedvsr.federation import ray_executor
from fedvsr.federation.actors import ActorPool, LiveActor
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.placement import Place
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask


@dataclass
class Cluster:
    """A clock, and what will be ready when.

    Args:
        durations: seconds that each client trains.
        num_slots: slots, one for each GPU.
        build_s: seconds to start a client's process.
    """

    durations: Sequence[float]
    num_slots: int
    build_s: float = 5.0
    now: float = 0.0
    log: list[tuple[int, int, float, float]] = field(default_factory=list)
    """Client, slot, and when it was sent and done."""
    num_built: int = 0
    _events: list[tuple[float, int, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def ready_at(self, when: float, value: object) -> Any:
        """A reference to a value that is ready at a time."""
        ref = SimpleNamespace(value=value, is_ready=False)
        heapq.heappush(self._events, (when, next(self._numbers), ref))
        return _Ref(ref)

    def wait(self, refs: Sequence[Any], num_returns: int, timeout: float) -> tuple[list[Any], Any]:
        """Advance the clock to the first event, or by the time limit."""
        ready = [ref for ref in refs if ref.state.is_ready][:num_returns]
        if ready:
            return ready, None
        limit = self.now + timeout
        while self._events and self._events[0][0] <= limit:
            self.now, _, state = heapq.heappop(self._events)
            state.is_ready = True
            ready = [ref for ref in refs if ref.state is state]
            if ready:
                return ready, None
        self.now = limit
        return [], None


class _Ref:
    def __init__(self, state: Any) -> None:
        self.state = state


class Pool(ActorPool):
    """Starts actors that exist only as numbers."""

    cluster: Cluster

    def start(self, client_id: int, place: Place) -> LiveActor:
        cluster = self.cluster
        cluster.num_built += 1
        building = cluster.ready_at(cluster.now + cluster.build_s, None)
        free = {"at": cluster.now + cluster.build_s}

        def train(task: ClientTask, *_: object) -> tuple[Any, Any]:
            took = cluster.durations[client_id]
            sent = cluster.now
            free["at"] = max(free["at"], sent) + took
            cluster.log.append((client_id, place.slots[0], sent, free["at"]))
            return cluster.ready_at(free["at"], SimpleNamespace(train_s=took)), _Ref(None)

        call = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=train))
        pulse: Any = SimpleNamespace(check=lambda: None)
        return LiveActor(SimpleNamespace(train=call), place, building, pulse)


def _of(cluster: Cluster, max_live: int) -> RayExecutor:
    places = [Place(f"node-{i // 8}", "GPU", (i + 1,), (i,)) for i in range(cluster.num_slots)]
    placement: Any = SimpleNamespace(
        places=lambda: places, max_live_per_place=10, wanted=SimpleNamespace(gpu_share=0.1)
    )
    clients: Any = SimpleNamespace()
    pool = type("PoolOfCluster", (Pool,), {"cluster": cluster})
    kind = type("Simulated", (RayExecutor,), {"make_pool": pool})
    executor: RayExecutor = kind(clients, ClusterConfig(max_live_clients=max_live), placement)
    return executor


@contextmanager
def simulated(cluster: Cluster, max_live: int = 8) -> Iterator[RayExecutor]:
    """The real executor on a simulated cluster."""
    ray = SimpleNamespace(put=lambda _: None, get=_get, wait=cluster.wait)
    clock = SimpleNamespace(monotonic=lambda: cluster.now, sleep=lambda _: None)
    with (
        patch.object(ray_executor, "ray", ray),
        patch.object(ray_executor, "time", clock),
        patch.object(ray_executor, "_steps", lambda *_: 1),
        patch("fedvsr.federation.actors.end", lambda _: None),
    ):
        yield _of(cluster, max_live)


def _get(ref: Any, timeout: float) -> Any:
    return ref.state.value if ref.state is not None else None


def run_rounds(executor: RayExecutor, cohorts: Sequence[Sequence[int]]) -> list[float]:
    """Train cohorts one after the other; returns the seconds of each on the cluster's clock."""
    cluster = type(executor).make_pool.cluster  # type: ignore[attr-defined]
    seconds = []
    for round_idx, cohort in enumerate(cohorts, 1):
        began = cluster.now
        tasks = [ClientTask(i, round_idx, len(cohorts), seed=i) for i in cohort]
        upcoming = cohorts[round_idx] if round_idx < len(cohorts) else ()
        states: Any = SimpleNamespace(get=lambda _: {})
        results = list(executor.run_round(tasks, {}, states, upcoming))
        assert len(results) == len(cohort), "a client was lost"
        seconds.append(cluster.now - began)
    return seconds


def greedy_s(durations: Sequence[float], num_slots: int) -> float:
    """The seconds of greedy list scheduling: each client, in order, takes the first free slot."""
    free = [0.0] * num_slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free, default=math.nan)
