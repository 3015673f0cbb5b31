"""Clients as Ray actors: each sees only its own clips, and is pinned to a slot of the run."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Any, ClassVar

import ray
import torch
from ray.exceptions import ObjectLostError, RayError, RayTaskError

from fedvsr.algorithms.base import Aggregated
from fedvsr.errors import UserError
from fedvsr.federation.absence import absent, no_node
from fedvsr.federation.actors import POOLS, ActorPool
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.aggregators import Aggregators, count_slices
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig, Isolation
from fedvsr.federation.dispatch import Dispatch, Waiting
from fedvsr.federation.executors import (
    ClientOutcome,
    Clients,
    Fault,
    FaultKind,
    Scorer,
    TrainedClient,
    first_line,
    given_up,
)
from fedvsr.federation.masked_sum import require_room
from fedvsr.federation.placement import Place, Placement
from fedvsr.federation.pulse import Pulse
from fedvsr.federation.ray_scorer import POLL_S, RayScorer
from fedvsr.federation.remote import RemoteState, RemoteUpdate, fault_kind
from fedvsr.federation.schedule import Schedule
from fedvsr.inference.evaluate import Evaluator
from fedvsr.limits import FETCH_S, ClusterGoneError
from fedvsr.messages import ClientReport, ClientTask, Vectors
from fedvsr.training.local import count_steps


@dataclass
class _Running:
    waiting: Waiting
    state: Any
    slices: Sequence[Any]
    place: Place
    slot: int
    pulse: Pulse
    sent: float = field(default_factory=time.monotonic)


class RayExecutor:
    """Trains a round's clients side by side in slots. A freed slot takes the next waiting client.

    Actors stay alive after their round, in `pool`.

    Args:
        clients: what is needed to train any client.
        config: retries, deadlines and the number of live actors.
        placement: where actors may run.
        stop: ends a round with KeyboardInterrupt once another thread sets it.
    """

    name = "ray"
    pools: ClassVar[Mapping[Isolation, type[ActorPool]]] = POOLS

    def __init__(
        self,
        clients: Clients,
        config: ClusterConfig,
        placement: Placement,
        stop: threading.Event | None = None,
    ) -> None:
        self._clients, self._config, self._placement = clients, config, placement
        self._stop = stop or threading.Event()
        self._owners = placement.wanted.owners
        make_pool = self.pools[config.isolation]
        self._schedule = Schedule(partial(_steps, clients), self._owners.of, make_pool.move_s)
        self.pool = make_pool(clients, placement, config.max_live_clients)
        self._dispatch = Dispatch(self._schedule)
        self._places = list[Place]()
        self._gone = False
        self._look_for_places()
        self._running = dict[Any, _Running]()
        # Where the clients of the next round are to train, while this one trains.
        self._upcoming = dict[int, Place]()
        self._scorer: RayScorer | None = None
        self._aggregators = Aggregators(clients, config, placement, self._stop)
        self._shared_ref: Any = None
        # By client whose update was lost: how often it has trained already.
        self._attempts = dict[int, int]()

    def run_round(
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        """Train the round's clients; see `Executor.run_round`."""
        for left in self._running.values():
            # What is left of a round that was given up must not train beside this one.
            self.pool.discard(left.waiting.task.client_id)
        self._dispatch, self._running = Dispatch(self._schedule), {}
        require_room(self._clients, len(tasks), self._placement)
        if time.monotonic() - self._looked > POLL_S:
            self._look_for_places()
        else:
            # The cluster's head is asked no more often in short rounds than in long ones.
            self._dispatch.set_places(self._places)
        if not self._aggregators.num_slices:
            self._aggregators.num_slices = count_slices(
                self._clients, self._config, self._places, shared["params"].size
            )
        shared_ref = self._shared_ref = ray.put(shared)
        plan = self._plan([task.client_id for task in tasks])
        self._dispatch.queue(
            [
                Waiting(task, plan[task.client_id], self._attempts.pop(task.client_id, 0))
                for task in tasks
                if task.client_id in plan
            ]
        )
        yield from (absent(task, self._owners) for task in tasks if task.client_id not in plan)
        planned_for = None
        while self._dispatch:
            taken_s = self._taken_s()
            if planned_for != taken_s.keys():
                # Again as the scorer takes or frees a slot, and not after every event.
                self._upcoming, planned_for = self._plan(upcoming), taken_s.keys()
            for item, place, slot in self._dispatch.starting(time.monotonic(), taken_s):
                self._send(item, place, slot, shared_ref, states)
            self._build_ahead()
            for done in self._wait():
                yield from self._collect(done)
            if time.monotonic() - self._looked <= POLL_S:
                continue
            yield from self._overdue()
            if lost := self._look_for_places():
                yield from self._leave(lost)

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        """Combine the round's updates; see `Executor.aggregate`."""
        shared_ref, self._shared_ref = self._shared_ref, None
        for event in self._aggregators.aggregate(work, shared_ref):
            if isinstance(event, Fault) and event.client_id is not None and not event.final:
                self._attempts[event.client_id] = event.attempt
                if event.client_id in self._aggregators.holding:
                    # Its process may be dead, which is not to cost another attempt.
                    self.pool.discard(event.client_id)
            yield event

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        """Start the scorer's actor: beside the driver or, with GPUs, in the last slot."""
        self._scorer = RayScorer(make, self._placement, self._scorers_place, self._stop)
        return self._scorer

    def _scorers_place(self) -> Place | None:
        has_gpu = self._placement.wanted.gpu_share and self._places
        return self._places[-1] if has_gpu else None

    def close(self) -> None:
        """End the client processes, unless the cluster is gone: they end with it."""
        if self._gone:
            return
        self.pool.close()
        self._aggregators.close()
        if self._scorer:
            self._scorer.close()

    # Slots

    def _taken_s(self) -> dict[Place, float]:
        """Expected seconds for which the evaluator still holds a slot, by place."""
        scorer = self._scorer
        if scorer is None or scorer.place is None or not scorer.occupies(scorer.place):
            return {}
        return {scorer.place: scorer.left_s()}

    def _send(
        self, item: Waiting, place: Place, slot: int, shared_ref: Any, states: ClientStates
    ) -> None:
        client_id = item.task.client_id
        self._keep_room_for_scorer()
        if item.alone:
            # Processes that wait hold memory too.
            self.pool.leave([place], self._trains)
        actor = self.pool.get(client_id, place, slot, self._trains)
        state, clips = self._remembered(client_id, states), self._clients.clips[client_id]
        num_slices = self._aggregators.num_slices
        report, state, *slices = actor.handle.train.options(num_returns=2 + num_slices).remote(
            item.task, shared_ref, state, clips, num_slices
        )
        started = replace(item, place=place, attempts=item.attempts + 1)
        self._running[report] = _Running(started, state, slices, place, slot, actor.pulse)
        if actor.building is None:
            self._dispatch.began(slot, time.monotonic())

    def _remembered(self, client_id: int, states: ClientStates) -> Any:
        """What a client remembers; a reference if it lies on a node, which Ray sends it from."""
        state = states.find(client_id)
        if not isinstance(state, RemoteState):
            return state
        is_there = any(place.node_id == state.node_id for place in self._places)
        return state.ref if is_there else states.get(client_id)

    # Results

    def _wait(self) -> list[Any]:
        """Wait a moment; returns the reports that have arrived, possibly none."""
        scoring = self._scorer.pending() if self._scorer else []
        building = self.pool.building()
        refs = [*self._running, *building, *scoring]
        if refs:
            done, _ = ray.wait(refs, num_returns=1, timeout=POLL_S)
        else:
            # Every place was lost.
            time.sleep(POLL_S)
            done = []
        if self._stop.is_set():
            raise KeyboardInterrupt
        for ref in done:
            if ref in building:
                self._built(ref)
        return [ref for ref in done if ref in self._running]

    def _built(self, ref: Any) -> None:
        client_id = self.pool.built(ref, self._trains)
        if client_id in self._dispatch.slot_of:
            self._dispatch.began(self._dispatch.slot_of[client_id], time.monotonic())

    def _trains(self, client_id: int | None) -> bool:
        return client_id in self._dispatch.slot_of or client_id in self._aggregators.holding

    def _take(self, ref: Any) -> _Running:
        """What runs, which ends: its slot is free."""
        running = self._running.pop(ref)
        self._dispatch.ended(running.slot)
        return running

    def _collect(self, done: Any) -> Iterator[TrainedClient | Fault]:
        running = self._take(done)
        item, node = running.waiting, running.place.node_id
        try:
            report: ClientReport = ray.get(done, timeout=FETCH_S)
        except RayTaskError as error:
            kind: FaultKind = "raised"
            cause = error.cause if isinstance(error.cause, Exception) else error
            if isinstance(cause, torch.OutOfMemoryError):
                kind = "out_of_memory"
            if isinstance(cause, ObjectLostError):
                # What it was sent went with another node.
                kind = "node_lost"
            yield from self._failed(running, kind, cause, str(error))
        except RayError as error:
            yield from self._failed(running, fault_kind(error, node), error)
        else:
            self._schedule.took(item.task.client_id, report.train_s)
            outcome = ClientOutcome(report, item.attempts, node, running.slot)
            yield TrainedClient(outcome, self._update_of(running, outcome))

    def _update_of(self, running: _Running, outcome: ClientOutcome) -> RemoteUpdate:
        """The update, which stays on its node."""
        task, num_bytes = running.waiting.task, outcome.report.state_bytes
        state: Vectors | RemoteState = {}
        if num_bytes:
            node = running.place.node_id
            state = RemoteState(task.client_id, node, num_bytes, running.state)
        holder = self.pool[task.client_id] if self._clients.update.secure_sum else None
        if holder:
            self._aggregators.holding.add(task.client_id)
        return RemoteUpdate(task, state, running.slices, holder)

    def _failed(
        self, running: _Running, kind: FaultKind, error: Exception, trace: str | None = None
    ) -> Iterator[Fault]:
        """Report a failure, and queue the task again if it may be retried."""
        item = running.waiting
        task = item.task
        self.pool.discard(task.client_id)
        lost, owner = running.place.node_id, running.place.owner
        # Ray notices the death of a process earlier than that of its node.
        others = [p for p in self._places if p.node_id != lost and p.owner == owner]
        if kind == "node_lost" and owner and not others:
            error = no_node(self._owners, owner)
        # A mistake in settings or data would fail again.
        final = isinstance(error, UserError) or item.attempts > self._config.max_retries
        if not final:
            if kind in ("died", "node_lost") and others:
                item = replace(item, place=others[0], shunned=lost)
            if kind == "out_of_memory":
                # Clients that share a GPU, or a node, share its memory.
                item = replace(item, alone=True)
            self._dispatch.add(item)
        message = f"client {task.client_id} in round {task.round_idx}: {first_line(error)}"
        if final and not isinstance(error, UserError):
            message += f" (start {item.attempts} of {item.attempts})"
        yield Fault(
            task.round_idx,
            task.client_id,
            kind,
            message,
            attempt=item.attempts,
            final=final,
            lost_s=time.monotonic() - running.sent,
            node=running.place.node_id,
            traceback=trace or "".join(traceback.format_exception(error)),
            error=given_up(task, error, item.attempts),
        )

    def _overdue(self) -> Iterator[Fault]:
        """Give up tasks that take too long, and those whose process does not answer."""
        limit_s = self._config.client_timeout_s
        now = time.monotonic()
        for ref, running in list(self._running.items()):
            try:
                if limit_s is not None and now - running.sent > limit_s:
                    raise TimeoutError(f"no result within cluster.client_timeout_s = {limit_s:g} s")
                running.pulse.check()
            except TimeoutError as error:
                yield from self._failed(self._take(ref), "timeout", error)

    # Places

    def _look_for_places(self) -> list[Place]:
        """Update the places to those on living nodes; returns the places that are lost."""
        self._looked = time.monotonic()
        try:
            now = self._placement.places()
        except ClusterGoneError:
            self._gone = True
            raise
        living = set(now)
        lost = [place for place in self._places if place not in living]
        self._places = now
        self._dispatch.set_places(now)
        self.pool.set_places(now)
        return lost

    def _leave(self, lost: Sequence[Place]) -> Iterator[Fault]:
        """Move the work of lost places to the others.

        Raises:
            RuntimeError: no place came back within `cluster.placement_timeout_s`.
        """
        self.pool.leave(lost, self._trains)
        for ref, running in list(self._running.items()):
            if running.place in lost:
                gone = RuntimeError("its node is gone")
                yield from self._failed(self._take(ref), "node_lost", gone)
        deadline = time.monotonic() + self._config.placement_timeout_s
        # An owner without a node is absent; nobody waits for it.
        while not (self._places or self._owners):
            if time.monotonic() > deadline:
                raise RuntimeError("every node with a slot of this run is gone")
            time.sleep(POLL_S)
            self._look_for_places()
        waiting = list(self._dispatch.waiting())
        plan = self._plan([item.task.client_id for item in waiting])
        present = [item for item in waiting if item.task.client_id in plan]
        self._dispatch.queue([replace(i, place=plan[i.task.client_id]) for i in present])
        self._upcoming = self._plan(list(self._upcoming))
        for item in waiting:
            if item.task.client_id not in plan:
                yield absent(item.task, self._owners, item.attempts + 1)

    def _plan(self, client_ids: Sequence[int]) -> dict[int, Place]:
        return self._schedule.plan(client_ids, self._places, self.pool.homes(), self._taken_s())

    def _build_ahead(self) -> None:
        """Build the actors of waiting clients, then the next round's, as far as there is room."""
        waiting = ((item.task.client_id, item.place) for item in self._dispatch.waiting())
        # A client that trains now has an actor, here or in a place where it will not be needed.
        later = ((i, p) for i, p in self._upcoming.items() if not self._dispatch.is_busy(i))
        self._keep_room_for_scorer()
        self.pool.build_ahead(chain(waiting, later), self._is_needed)

    def _is_needed(self, client_id: int | None) -> bool:
        return client_id is not None and (
            client_id in self._upcoming
            or self._trains(client_id)
            or self._dispatch.is_busy(client_id)
        )

    def _keep_room_for_scorer(self) -> None:
        self.pool.evaluator_place = self._scorer.place if self._scorer else None


def _steps(clients: Clients, client_id: int) -> int:
    return count_steps(clients.local, clients.clips[client_id])
