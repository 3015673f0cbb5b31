"""The executor on a cluster that exists only as numbers: a clock, slots, and how long clients take.

The executor, its queues and its pool of actors are the real ones; what Ray does is simulated.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import ray
import torch
from ray.exceptions import RayTaskError

from fedvsr.data.owners import NOBODY, Owners
from fedvsr.federation import actors, ray_executor
from fedvsr.federation.actors import POOLS, ActorPool, LiveActor
from fedvsr.federation.config import ClusterConfig, Isolation
from fedvsr.federation.executors import Fault
from fedvsr.federation.placement import Place
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask
from fedvsr.training.updates import UNCHANGED


@dataclass
class Cluster:
    """A clock, and what will be ready when.

    Args:
        durations: seconds that each client trains.
        num_slots: slots.
        build_s: seconds to start a client's process.
        per_gpu: slots of a GPU.
        hungry: clients for which a GPU's memory is too small while another client trains there.
        owners: whose each client is.
        gpu_owners: whose each GPU is.
        per_node: GPUs of a node.
        away: from when to when each node is away, by its id.
    """

    durations: Sequence[float]
    num_slots: int
    build_s: float = 5.0
    per_gpu: int = 1
    hungry: frozenset[int] = frozenset()
    owners: Owners = NOBODY
    gpu_owners: Sequence[str] = ()
    per_node: int = 8
    away: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    now: float = 0.0
    log: list[tuple[int, int, float, float]] = field(default_factory=list)
    """Client, first slot of its GPU, and when it was sent and done."""
    num_built: int = 0
    _events: list[tuple[float, int, Any]] = field(default_factory=list)
    _numbers: Iterator[int] = field(default_factory=count)

    def ready_at(self, when: float, value: object) -> Any:
        """A reference to a value that is ready at a time."""
        ref = SimpleNamespace(value=value, is_ready=False)
        heapq.heappush(self._events, (when, next(self._numbers), ref))
        return _Ref(ref)

    def is_used(self, slot: int) -> bool:
        """Whether a client trains on the GPU with that first slot."""
        return any(gpu == slot and done > self.now for _, gpu, _, done in self.log)

    def is_away(self, node: str) -> bool:
        """Whether a node is away now."""
        begin, end = self.away.get(node, (math.inf, math.inf))
        return begin <= self.now < end

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


class Simulated(RayExecutor):
    """The executor, with its cluster."""

    cluster: Cluster


def _starts_on(cluster: Cluster) -> Any:
    """How a pool starts actors that exist only as numbers."""

    def start(self: ActorPool, client_id: int | None, place: Place) -> LiveActor:
        cluster.num_built += 1
        building = cluster.ready_at(cluster.now + cluster.build_s, None)
        free = {"at": cluster.now + cluster.build_s}

        def train(task: ClientTask, *_: object) -> tuple[Any, Any]:
            took, sent = cluster.durations[task.client_id], cluster.now
            is_shared = any(
                gpu == place.slots[0] and done > sent for _, gpu, _, done in cluster.log
            )
            if task.client_id in cluster.hungry and is_shared:
                cause = torch.OutOfMemoryError("CUDA out of memory")
                return cluster.ready_at(sent + 1, RayTaskError("train", "", cause)), _Ref(None)
            free["at"] = max(free["at"], sent) + took
            cluster.log.append((task.client_id, place.slots[0], sent, free["at"]))
            report = SimpleNamespace(train_s=took, state_bytes=0)
            return cluster.ready_at(free["at"], report), _Ref(None)

        call = SimpleNamespace(options=lambda **_: SimpleNamespace(remote=train))
        pulse: Any = SimpleNamespace(check=lambda: None)
        return LiveActor(SimpleNamespace(train=call), place, building, pulse)

    return start


def _of(cluster: Cluster, config: ClusterConfig) -> Simulated:
    per_gpu = cluster.per_gpu
    slots = [tuple(range(i, i + per_gpu)) for i in range(0, cluster.num_slots, per_gpu)]
    owners = cluster.gpu_owners or [""] * len(slots)
    places = [
        Place(f"node-{i // cluster.per_node}", "GPU", (i + 1,), own, owner)
        for i, (own, owner) in enumerate(zip(slots, owners, strict=True))
    ]
    placement: Any = SimpleNamespace(
        places=lambda: [place for place in places if not cluster.is_away(place.node_id)],
        max_live_per_place=10,
        wanted=SimpleNamespace(gpu_share=0.1, owners=cluster.owners),
    )
    clients: Any = SimpleNamespace(clips=[()] * len(cluster.durations), update=UNCHANGED)
    pools = {
        isolation: type(kind.__name__, (kind,), {"start": _starts_on(cluster)})
        for isolation, kind in POOLS.items()
    }
    executor = type("Executor", (Simulated,), {"pools": pools})(clients, config, placement)
    executor.cluster = cluster
    return executor


@contextmanager
def simulated(
    cluster: Cluster, max_live: int = 8, isolation: Isolation = "client"
) -> Iterator[Simulated]:
    """The real executor on a simulated cluster."""
    fake = SimpleNamespace(put=lambda _: None, get=_get, wait=cluster.wait, remote=ray.remote)
    clock = SimpleNamespace(monotonic=lambda: cluster.now, sleep=lambda _: None)
    with (
        patch.object(ray_executor, "ray", fake),
        patch.object(actors, "ray", fake),
        patch.object(ray_executor, "time", clock),
        patch.object(ray_executor, "_steps", lambda *_: 1),
        patch.object(ray_executor, "count_slices", lambda *_: 1),
        patch("fedvsr.federation.actors.end", lambda _: None),
    ):
        yield _of(cluster, ClusterConfig(max_live_clients=max_live, isolation=isolation))


def _get(ref: Any, timeout: float) -> Any:
    value = ref.state.value if ref.state is not None else None
    if isinstance(value, Exception):
        raise value
    return value


def run_rounds(
    executor: Simulated, cohorts: Sequence[Sequence[int]], faults: list[Fault] | None = None
) -> list[float]:
    """Train cohorts one after the other; returns the seconds of each on the cluster's clock.

    Args:
        executor: of `simulated`.
        cohorts: the clients of each round.
        faults: takes the faults; by default there must be none.
    """
    cluster = executor.cluster
    seconds = []
    for round_idx, cohort in enumerate(cohorts, 1):
        began = cluster.now
        tasks = [ClientTask(i, round_idx, len(cohorts), seed=i) for i in cohort]
        upcoming = cohorts[round_idx] if round_idx < len(cohorts) else ()
        states: Any = SimpleNamespace(find=lambda _: {})
        shared = {"params": np.zeros(1, np.float32)}
        results = list(executor.run_round(tasks, shared, states, upcoming))
        failed = [result for result in results if isinstance(result, Fault)]
        lost = [fault for fault in failed if fault.final]
        assert len(results) - len(failed) + len(lost) == len(cohort), "a client was lost"
        assert not failed or faults is not None, failed
        if faults is not None:
            faults += failed
        seconds.append(cluster.now - began)
    return seconds


def greedy_s(durations: Sequence[float], num_slots: int) -> float:
    """The seconds of greedy list scheduling: each client, in order, takes the first free slot."""
    free = [0.0] * num_slots
    for duration in durations:
        heapq.heapreplace(free, free[0] + duration)
    return max(free, default=math.nan)
