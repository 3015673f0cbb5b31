"""Clients as Ray actors: each sees its own clips alone and holds a share of a GPU."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.cluster import ClusterConfig
from fedvsr.federation.executors import ClientOutcome, Clients
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.params import FloatVector


class ClientActor:
    """One client: its clips and a network. What it returns is a report and a vector, no more."""

    def __init__(self, clients: Clients, client_id: int) -> None:
        # `clients` holds this client's clips alone; see RayExecutor._start.
        self._clips = clients.clips[0]
        self._client_id = client_id
        self._trainer = clients.make_trainer()
        self._vector: FloatVector | None = None

    def train(
        self, task: ClientTask, shared: Vectors, state: Vectors
    ) -> tuple[ClientReport, ClientUpdate]:
        """One task of this client. `shared` is read-only memory, the same for all actors."""
        assert task.client_id == self._client_id
        if self._vector is None:
            self._vector = np.empty_like(shared["params"])
        # What is returned is copied to the object store before the next task begins.
        return self._trainer.train(task, shared, state, self._clips, self._vector)


@dataclass(frozen=True)
class _Running:
    task: ClientTask
    update: ray.ObjectRef[ClientUpdate]
    attempts: int


class RayExecutor:
    """Trains a round's clients side by side in slots; a freed slot takes the next waiting client.

    An actor is kept after its round, as starting one costs seconds; the one unused for longest
    makes room for a new one. Actors hold no state between tasks: losing one costs time, no bits.
    """

    name = "ray"

    def __init__(self, clients: Clients, config: ClusterConfig) -> None:
        self._clients = clients
        self._config = config
        self._gpu_share, self._slots, self._max_live = _capacity(config, clients.local.num_threads)
        # Least recently used first.
        self._actors: OrderedDict[int, Any] = OrderedDict()

    def run_round(
        self, tasks: Sequence[ClientTask], shared: Vectors, states: ClientStates
    ) -> Iterator[ClientOutcome]:
        """Outcomes in the order of arrival.

        Raises:
            RuntimeError: a client's process died more often than `cluster.max_retries` allows.
        """
        shared_ref = ray.put(shared)
        waiting = deque((task, 1) for task in tasks)
        running = dict[Any, _Running]()
        for task in tasks[: self._max_live]:
            # Processes start together; a waiting client's network is ready when its slot is.
            self._actor(task.client_id, busy={t.client_id for t in tasks})
        while waiting or running:
            while waiting and len(running) < self._slots:
                task, attempts = waiting.popleft()
                busy = {r.task.client_id for r in running.values()}
                actor = self._actor(task.client_id, busy)
                report_ref, update_ref = actor.train.options(num_returns=2).remote(
                    task, shared_ref, states.get(task.client_id)
                )
                running[report_ref] = _Running(task, update_ref, attempts)
            (done,), _ = ray.wait(list(running), num_returns=1)
            finished = running.pop(done)
            try:
                report = ray.get(done)
            except (RayActorError, OutOfMemoryError) as error:
                self._discard(finished.task.client_id)
                if finished.attempts > self._config.max_retries:
                    raise RuntimeError(
                        f"the process of client {finished.task.client_id} died "
                        f"{finished.attempts} times in round {finished.task.round_idx}: {error}"
                    ) from error
                waiting.append((finished.task, finished.attempts + 1))
            except RayTaskError as error:
                raise error.cause from error
            else:
                yield ClientOutcome(report, partial(_fetch, finished.update), finished.attempts)

    def close(self) -> None:
        """End the client processes."""
        for client_id in list(self._actors):
            self._discard(client_id)

    def _actor(self, client_id: int, busy: set[int]) -> Any:
        """The client's actor, a new one if need be, for which an idle one may have to go."""
        if client_id not in self._actors:
            idle = [other for other in self._actors if other not in busy]
            while len(self._actors) >= self._max_live and idle:
                self._discard(idle.pop(0))
            self._actors[client_id] = self._start(client_id)
        self._actors.move_to_end(client_id)
        return self._actors[client_id]

    def _start(self, client_id: int) -> Any:
        own = replace(self._clients, clips=(self._clients.clips[client_id],))
        # num_cpus=0: the slots bound what runs at once; an idle actor must not hold a processor.
        options = {
            "num_cpus": 0,
            "num_gpus": self._gpu_share,
            "max_restarts": 0,
            "scheduling_strategy": "SPREAD",
        }
        return ray.remote(ClientActor).options(**options).remote(own, client_id)

    def _discard(self, client_id: int) -> None:
        ray.kill(self._actors.pop(client_id))


def _fetch(update: ray.ObjectRef[ClientUpdate]) -> ClientUpdate:
    # Zero-copy: a read-only view of the object store.
    return ray.get(update)


def _capacity(config: ClusterConfig, num_threads: int) -> tuple[float, int, int]:
    """GPU share, slots, and actors that may live at once, on the cluster that is connected.

    Raises:
        UserError: the cluster does not have what the configuration asks for.
    """
    total = ray.cluster_resources()  # type: ignore[no-untyped-call]
    num_gpus = int(total.get("GPU", 0))
    share = config.gpu_share if config.gpu_share is not None else float(num_gpus > 0)
    if share > 0:
        fits = num_gpus * int(1 / share)
        if not fits:
            raise UserError(
                f"cluster.gpu_share = {share:g}, but this Ray cluster has no GPU; set it to 0"
            )
        if config.slots is not None and config.slots > fits:
            raise UserError(
                f"cluster.slots = {config.slots} of {share:g} GPU each, but the cluster has "
                f"{num_gpus} GPUs, enough for {fits}"
            )
        return share, config.slots or fits, fits
    slots = config.slots or max(1, int(total.get("CPU", 1)) // num_threads)
    return 0.0, slots, max(slots, config.max_live_clients)
