"""Client actors, each with one client's clips and a network, and the pool that keeps them alive."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import numpy as np
import ray

from fedvsr.federation.aggregation import cut
from fedvsr.federation.executors import Clients
from fedvsr.federation.placement import Place, Placement
from fedvsr.federation.pulse import CONTROL, Pulse, end
from fedvsr.federation.ray_scorer import keep_to_own_gpus
from fedvsr.messages import ClientTask, Vectors
from fedvsr.params import FloatVector
from fedvsr.training.local import LocalTrainer

IsNeeded = Callable[[int], bool]
"""Whether something holds of a client."""


class ClientActor:
    """One client's process: its clips and a network. It returns a report and an update, no more.

    Args:
        clients: the shared settings, and the clips of this client alone.
        client_id: the client.
    """

    def __init__(self, clients: Clients, client_id: int) -> None:
        keep_to_own_gpus()
        (self._clips,) = clients.clips
        self._clients, self._client_id = clients, client_id
        self._trainer: LocalTrainer | None = None
        self._vector: FloatVector | None = None

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def ready(self) -> None:
        """Build the trainer, while another client trains rather than in this one's first task."""
        self._build().warm_up()

    def train(
        self, task: ClientTask, shared: Vectors, state: Vectors, num_slices: int = 1
    ) -> tuple[Any, ...]:
        """Train one task of this client; see `LocalTrainer.train`.

        Args:
            task: the work.
            shared: the server's vectors (P,), in read-only memory that all actors share.
            state: what the client remembers.
            num_slices: parts of the upload, each of which may be fetched by another node.

        Returns:
            The client's report, what it remembers, and each slice of its upload.
        """
        assert task.client_id == self._client_id
        if self._vector is None:
            self._vector = np.empty_like(shared["params"])
        trainer = self._build()
        try:
            # Ray copies the result to the object store before the next task begins.
            report, update = trainer.train(task, shared, state, self._clips, self._vector)
            return report, update.state, *_slices(update.upload, num_slices)
        finally:
            # The next client on this GPU needs the memory.
            trainer.release()

    def _build(self) -> LocalTrainer:
        # Not in `__init__`: the process answers `ping` only after that.
        if self._trainer is None:
            self._trainer = self._clients.make_trainer()
        return self._trainer


def _slices(upload: Mapping[str, Any], num_slices: int) -> Iterator[Mapping[str, Any]]:
    """The upload in parts: views, which Ray copies one by one."""
    if num_slices == 1:
        yield upload
        return
    # Empty if the client diverged. All vectors have the parameters' length.
    size = len(upload["params"]) if upload else 0
    for part in cut(size, num_slices):
        yield {name: vector[part] for name, vector in upload.items()}


@dataclass
class LiveActor:
    """An actor of the pool."""

    handle: Any
    place: Place
    building: Any
    """Reference to the result of `ready`; None once the actor is built."""
    pulse: Pulse


class ActorPool:
    """Keeps client actors alive between their rounds, because starting one costs seconds.

    The least recently used actor makes room for a new one. Actors hold no state between tasks, so
    losing one costs time and no bit.

    Args:
        clients: all that any client needs.
        placement: where actors may run.
        max_live: actors to keep alive at most, if there are fewer slots than that.
    """

    def __init__(self, clients: Clients, placement: Placement, max_live: int) -> None:
        self._clients, self._placement, self._max_live = clients, placement, max_live
        make: Any = ray.remote(concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
        self._remote = make(ClientActor)
        # Least recently used first.
        self._actors = OrderedDict[int, LiveActor]()
        self._here = dict[Place, OrderedDict[int, None]]()
        self._building = dict[Any, int]()
        self.num_slots = 0
        """Slots of the run that are on living nodes; the executor keeps it true."""
        self.evaluator_place: Place | None = None
        """Place that the run's evaluator lives in, if it takes a client's room."""

    def __getitem__(self, client_id: int) -> LiveActor:
        """The client's actor, which must be alive."""
        return self._actors[client_id]

    def items(self) -> Iterator[tuple[int, LiveActor]]:
        """Actors by client, as they are now: they may be discarded meanwhile."""
        return iter(list(self._actors.items()))

    def places(self) -> dict[int, Place]:
        """Where each client with an actor has it."""
        return {client_id: actor.place for client_id, actor in self._actors.items()}

    def building(self) -> Mapping[Any, int]:
        """References that become ready when an actor is built, with its client."""
        return dict(self._building)

    def built(self, client_id: int) -> Any:
        """Say that a client's actor is built; returns its reference."""
        actor = self._actors[client_id]
        ref, actor.building = actor.building, None
        del self._building[ref]
        return ref

    def get(self, client_id: int, place: Place, is_needed: IsNeeded) -> LiveActor:
        """The client's actor in a place; it is started there if need be.

        Args:
            client_id: the client.
            place: where it is to train.
            is_needed: whether the actor of a client should stay.
        """
        actor = self._actors.get(client_id)
        if actor is not None and actor.place != place:
            self.discard(client_id)
            actor = None
        if actor is None:
            # Even if there is no room: this client trains now, those that are needed train later.
            self._make_room(place, is_needed)
            actor = self._actors[client_id] = self.start(client_id, place)
            self._here.setdefault(place, OrderedDict())[client_id] = None
            self._building[actor.building] = client_id
        self._actors.move_to_end(client_id)
        self._here[place].move_to_end(client_id)
        return actor

    def build_ahead(self, plan: Iterable[tuple[int, Place]], is_needed: IsNeeded) -> None:
        """Start the actors of clients that train later, as far as there is room.

        Args:
            plan: clients and where each is to train, the most urgent first.
            is_needed: whether the actor of a client should stay.
        """
        num_building = len(self._building)
        # More than that have no room beside those that train.
        for client_id, place in islice(plan, self._most):
            if num_building >= self.num_slots:
                return
            actor = self._actors.get(client_id)
            if actor is not None and actor.place == place:
                continue
            if self._make_room(place, is_needed):
                self.get(client_id, place, is_needed)
                num_building += 1
            elif not self._is_crowded(place):
                # No actor anywhere may go.
                return

    def start(self, client_id: int, place: Place) -> LiveActor:
        """Start a client's process in a place. It is sent the clips of this client alone."""
        own = replace(self._clients, clips=(self._clients.clips[client_id],))
        options = self._placement.options(place.bundles[0], self._placement.wanted.gpu_share)
        handle = self._remote.options(**options).remote(own, client_id)
        return LiveActor(handle, place, handle.ready.remote(), Pulse(handle))

    def discard(self, client_id: int) -> None:
        """End a client's process, if there is one."""
        if actor := self._actors.pop(client_id, None):
            del self._here[actor.place][client_id]
            self._building.pop(actor.building, None)
            end(actor.handle)

    def leave(self, places: Sequence[Place], is_busy: IsNeeded) -> None:
        """End the idle processes in places that are lost."""
        for client_id, actor in self.items():
            if actor.place in places and not is_busy(client_id):
                self.discard(client_id)

    def close(self) -> None:
        """End all client processes."""
        for client_id, _ in self.items():
            self.discard(client_id)

    @property
    def _most(self) -> int:
        """Number of actors that may live."""
        return max(self._max_live, self.num_slots)

    def _make_room(self, place: Place, is_needed: IsNeeded) -> bool:
        """Discard idle actors until one more may live in the place; False if none can."""
        while True:
            crowded = self._is_crowded(place)
            if not crowded and len(self._actors) < self._most:
                return True
            candidates = self._here[place] if crowded else self._actors
            idle = next((i for i in candidates if not is_needed(i)), None)
            if idle is None:
                return False
            self.discard(idle)

    def _is_crowded(self, place: Place) -> bool:
        """Whether no more actors may live in a place."""
        most = self._placement.max_live_per_place - (self.evaluator_place == place)
        return len(self._here.get(place, ())) >= most
