"""The pools that keep client actors alive: one for each client, or one for each slot."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError

from fedvsr.federation.client_actor import ClientActor
from fedvsr.federation.config import Isolation
from fedvsr.federation.executors import Clients
from fedvsr.federation.placement import Place, Placement
from fedvsr.federation.pulse import CONTROL, Pulse, end
from fedvsr.federation.schedule import BUILD_S
from fedvsr.limits import FETCH_S

IsNeeded = Callable[[int | None], bool]
"""Whether something holds of a client; never of None."""


@dataclass
class LiveActor:
    """An actor of the pool."""

    handle: Any
    place: Place
    building: Any
    """Reference to the result of `ready`; None once the actor is built."""
    pulse: Pulse
    key: int = -1
    """What the pool knows it by: its client or its slot."""
    client_id: int | None = None
    """Whose process it is. Of a slot's process: who trains there, or did last."""


class ActorPool:
    """Keeps a process for each client alive between its rounds, because to start one costs seconds.

    The least recently used actor makes room for a new one. Actors hold no state between tasks, so
    losing one costs time and no bit.

    Attributes:
        move_s: seconds that a client pays to train in another place than before.

    Args:
        clients: all that any client needs.
        placement: where actors may run.
        max_live: actors to keep alive at most, if there are fewer slots than that.
    """

    move_s: ClassVar[float] = BUILD_S

    def __init__(self, clients: Clients, placement: Placement, max_live: int) -> None:
        self._clients, self._placement, self._max_live = clients, placement, max_live
        make: Any = ray.remote(concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
        self._remote = make(ClientActor)
        # By client (or slot), least recently used first.
        self._actors = OrderedDict[int, LiveActor]()
        self._here = dict[Place, OrderedDict[int, None]]()
        self._building = dict[Any, LiveActor]()
        self._places: Sequence[Place] = ()
        self._num_slots = 0
        self.evaluator_place: Place | None = None
        """Place that the run's evaluator lives in, if it takes a client's room."""

    def set_places(self, places: Sequence[Place]) -> None:
        """Say which places of the run are on living nodes."""
        self._places, self._num_slots = places, sum(len(place.slots) for place in places)

    def __getitem__(self, client_id: int) -> LiveActor:
        """The client's actor, which must be alive."""
        return self._actors[client_id]

    def items(self) -> Iterator[tuple[int, LiveActor]]:
        """Actors by client, as they are now: they may be discarded meanwhile."""
        return iter(list(self._actors.items()))

    def homes(self) -> Mapping[int, Place]:
        """Where each client that has an actor of its own has it."""
        return {client_id: actor.place for client_id, actor in self._actors.items()}

    def building(self) -> Collection[Any]:
        """References that become ready when an actor is built."""
        return self._building.keys()

    def built(self, ref: Any, is_busy: IsNeeded) -> int | None:
        """Note that an actor is built, if it is; returns its client.

        If it has a task, the task says why it is not. If it was built ahead, it is built again
        later.
        """
        actor = self._building.pop(ref)
        actor.building = None
        try:
            ray.get(ref, timeout=FETCH_S)
        except RayError:
            if not is_busy(actor.client_id):
                self._drop(actor)
        return actor.client_id

    def get(self, client_id: int, place: Place, slot: int, is_needed: IsNeeded) -> LiveActor:
        """The client's actor in a place; it is started there if need be.

        Args:
            client_id: the client.
            place: where it is to train.
            slot: the slot in which it is to train.
            is_needed: whether the actor of a client should stay.
        """
        return self._get(client_id, client_id, place, is_needed)

    def build_ahead(self, plan: Iterable[tuple[int, Place]], is_needed: IsNeeded) -> None:
        """Start the actors of clients that train later, as far as there is room.

        Args:
            plan: clients and where each is to train, the most urgent first.
            is_needed: whether the actor of a client should stay.
        """
        num_building = len(self._building)
        # More than that have no room beside those that train.
        for client_id, place in islice(plan, self._most):
            if num_building >= self._num_slots:
                return
            actor = self._actors.get(client_id)
            if actor is not None and actor.place == place:
                continue
            if self._make_room(place, is_needed):
                self._get(client_id, client_id, place, is_needed)
                num_building += 1
            elif not self._is_crowded(place):
                # No actor anywhere may go.
                return

    def start(self, client_id: int | None, place: Place) -> LiveActor:
        """Start a process in a place. It is sent settings; clips come with each task."""
        options = self._placement.options(place.bundles[0], self._placement.wanted.gpu_share)
        # In a tuple, so that the reference itself arrives.
        handle = self._remote.options(**options).remote((self._settings,), client_id)
        return LiveActor(handle, place, handle.ready.remote(), Pulse(handle))

    def discard(self, client_id: int) -> None:
        """End the process that trains a client, if there is one."""
        if actor := self._actors.get(client_id):
            self._drop(actor)

    def leave(self, places: Sequence[Place], is_busy: IsNeeded) -> None:
        """End the idle processes in places that are lost."""
        for _, actor in self.items():
            if actor.place in places and not is_busy(actor.client_id):
                self._drop(actor)

    def close(self) -> None:
        """End all client processes."""
        for _, actor in self.items():
            self._drop(actor)

    @cached_property
    def _settings(self) -> Any:
        """Reference to what all processes need."""
        return ray.put(replace(self._clients, clips=()))

    @property
    def _most(self) -> int:
        """Number of actors that may live."""
        return max(self._max_live, self._num_slots)

    def _get(self, key: int, client_id: int | None, place: Place, is_needed: IsNeeded) -> LiveActor:
        """The actor of a client, or of a slot, in a place; it is started there if need be."""
        actor = self._actors.get(key)
        if actor is not None and actor.place != place:
            self._drop(actor)
            actor = None
        if actor is None:
            # Even if there is no room: this client trains now, those that are needed train later.
            self._make_room(place, is_needed)
            actor = self._actors[key] = self.start(client_id, place)
            actor.key, actor.client_id = key, client_id
            self._here.setdefault(place, OrderedDict())[key] = None
            self._building[actor.building] = actor
        self._actors.move_to_end(key)
        self._here[place].move_to_end(key)
        return actor

    def _drop(self, actor: LiveActor) -> None:
        """End a process."""
        del self._actors[actor.key]
        del self._here[actor.place][actor.key]
        self._building.pop(actor.building, None)
        end(actor.handle)

    def _make_room(self, place: Place, is_needed: IsNeeded) -> bool:
        """Discard idle actors until one more may live in the place; False if none can."""
        while True:
            crowded = self._is_crowded(place)
            if not crowded and len(self._actors) < self._most:
                return True
            candidates = self._here[place] if crowded else self._actors
            actors = (self._actors[key] for key in candidates)
            idle = next((actor for actor in actors if not is_needed(actor.client_id)), None)
            if idle is None:
                return False
            self._drop(idle)

    def _is_crowded(self, place: Place) -> bool:
        """Whether no more actors may live in a place."""
        most = self._placement.max_live_per_place - (self.evaluator_place == place)
        return len(self._here.get(place, ())) >= most


class SlotPool(ActorPool):
    """Keeps a process for each slot, which trains one client after the other.

    So a round starts no process, whatever clients are drawn.
    """

    # The process of the other slot lives already.
    move_s = 0.0

    def __init__(self, clients: Clients, placement: Placement, max_live: int) -> None:
        super().__init__(clients, placement, max_live)
        self._slot_of = dict[int, int]()
        self._begun = set[int]()

    def __getitem__(self, client_id: int) -> LiveActor:
        """The actor that trains the client, or has trained it last and no other since."""
        return self._actors[self._slot_of[client_id]]

    def homes(self) -> Mapping[int, Place]:
        """No client has an actor of its own."""
        return {}

    def get(self, client_id: int, place: Place, slot: int, is_needed: IsNeeded) -> LiveActor:
        """The slot's actor, which takes the client; see `ActorPool.get`."""
        actor = self._get(slot, None, place, is_needed)
        self._forget(actor.client_id)
        if client_id in self._slot_of:
            self[client_id].client_id = None
        self._slot_of[client_id] = slot
        actor.client_id = client_id
        return actor

    def build_ahead(self, plan: Iterable[tuple[int, Place]], is_needed: IsNeeded) -> None:
        """Start the process of each slot that never had one, as far as there is room."""
        if len(self._begun) >= self._num_slots:
            return
        for place in self._places:
            for slot in place.slots:
                # Later ones start as their slot takes a client: a client that needs its place for
                # itself is to be alone there.
                if slot not in self._begun and not self._is_crowded(place):
                    self._get(slot, None, place, is_needed)

    def discard(self, client_id: int) -> None:
        """End the process that trains a client, if there is one."""
        if client_id in self._slot_of:
            self._drop(self[client_id])

    def _get(self, key: int, client_id: int | None, place: Place, is_needed: IsNeeded) -> LiveActor:
        self._begun.add(key)
        return super()._get(key, client_id, place, is_needed)

    def _drop(self, actor: LiveActor) -> None:
        super()._drop(actor)
        self._forget(actor.client_id)

    def _forget(self, client_id: int | None) -> None:
        if client_id is not None:
            del self._slot_of[client_id]


POOLS: Mapping[Isolation, type[ActorPool]] = {"client": ActorPool, "slot": SlotPool}
"""The pool for each value of `cluster.isolation`."""
