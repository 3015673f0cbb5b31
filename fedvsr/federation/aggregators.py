"""Combines updates that lie on the nodes which made them: here, or in slices by actors there.

P is the number of parameters.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import RayError, RayTaskError

from fedvsr import algorithms
from fedvsr.algorithms.base import Aggregated, is_by_coordinate
from fedvsr.federation.aggregation import RoundSum, aggregate_here, cut
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Fault, FaultKind, TrainedClient, given_up
from fedvsr.federation.masked_sum import Losses, masked_sum
from fedvsr.federation.placement import Place, Placement, alive_nodes
from fedvsr.federation.pulse import CONTROL, Pulse, SilentError, end
from fedvsr.federation.remote import RemoteUpdate, fault_kind
from fedvsr.federation.slice_actor import Missing, SliceActor
from fedvsr.limits import FETCH_S
from fedvsr.messages import LostError, Vectors

# Seconds between two checks of the actors, and of whether to stop.
_POLL_S = 1.0


# Every slice of every update is an object, of which the driver keeps account. Where slices are
# smaller, that costs more time than their nodes' links save (`make bench-scale`).
_LEAST_SLICE_BYTES = 16 << 20


def count_slices(
    clients: Clients, config: ClusterConfig, places: Sequence[Place], num_params: int
) -> int:
    """Slices into which a run's uploads are cut; 1 leaves them whole, for the driver to combine."""
    algorithm = algorithms.build(clients.algorithm)
    # Neither compressed vectors nor those that stay with their client can be cut.
    whole = clients.update.secure_sum or clients.update.compression != "none"
    if whole or not algorithm.upload or not is_by_coordinate(algorithm):
        return 1
    if config.aggregation_shards:
        return config.aggregation_shards
    if any(place.owner for place in places):
        # What a client sends can be turned back into frames, so it is not sent to other owners.
        return 1
    num_nodes = len({place.node_id for place in places})
    return max(1, min(num_nodes, 4 * num_params // _LEAST_SLICE_BYTES))


@dataclass(frozen=True)
class _Aggregator:
    handle: Any
    node_id: str
    pulse: Pulse


class Aggregators:
    """Combines a round's updates, by an actor for each slice if there are several.

    Args:
        clients: the run's.
        config: how often what is lost is tried again.
        placement: where actors may run.
        stop: ends the wait with KeyboardInterrupt once another thread sets it.
    """

    def __init__(
        self,
        clients: Clients,
        config: ClusterConfig,
        placement: Placement,
        stop: threading.Event,
    ) -> None:
        self._clients, self._placement = clients, placement
        self._max_retries, self._stop = config.max_retries, stop
        self.num_slices = 0
        """Slices of each upload; the executor sets it in its first round."""
        self.holding = set[int]()
        """Clients whose process keeps an update that is not summed yet, for a secure sum."""
        # By slice.
        self._actors = dict[int, _Aggregator]()
        # Nodes on which an actor was lost: the cluster learns of a node's death later.
        self._shunned = set[str]()

    def aggregate(self, work: RoundSum, shared_ref: Any) -> Iterator[Fault | Aggregated]:
        """Combine a round's updates; see `Executor.aggregate`.

        Args:
            work: the updates, each of them a `RemoteUpdate`.
            shared_ref: reference to the round's broadcast vectors (P,).
        """
        losses = _on_dead_nodes(work)
        if not losses:
            if self._clients.update.secure_sum:
                result = masked_sum(work, self._clients.update, self._stop)
            elif self.num_slices == 1:
                result = _combine_here(work)
            else:
                result = yield from self._combine_slices(work, shared_ref)
            if isinstance(result, Aggregated):
                self.holding.clear()
                yield result
                return
            # All that went with the same node train again together.
            losses = {**_on_dead_nodes(work), **result}
        for client in work.clients:
            if loss := losses.get(client.outcome.report.client_id):
                yield self._fault(client, *loss)

    def close(self) -> None:
        """End the actors."""
        for actor in self._actors.values():
            end(actor.handle)
        self._actors.clear()

    def _combine_slices(
        self, work: RoundSum, shared_ref: Any
    ) -> Generator[Fault, None, Aggregated | Losses]:
        parts = cut(work.server["params"].size, self.num_slices)
        running = {self._send(work, shared_ref, i, parts): i for i in range(len(parts))}
        num_lost, losses = Counter[int](), Losses()
        vectors, shares = Vectors(), None
        while running:
            done, _ = ray.wait(list(running), num_returns=1, timeout=_POLL_S)
            if self._stop.is_set():
                raise KeyboardInterrupt
            gone = list(self._silent(running))
            for ref in done:
                try:
                    result: Aggregated | Missing = ray.get(ref, timeout=FETCH_S)
                except RayTaskError as error:
                    raise error.cause from error
                except RayError as error:
                    gone.append((ref, error))
                    continue
                part = parts[running.pop(ref)]
                if isinstance(result, Missing):
                    losses |= _loss_of(result, work)
                    continue
                for name, vector in result.vectors.items():
                    whole = vectors.setdefault(name, np.empty_like(work.server["params"]))
                    whole[part] = vector
                shares = result.weights
            for ref, why in gone:
                i = running.pop(ref)
                num_lost[i] += 1
                yield self._lose(work, i, num_lost[i], why)
                running[self._send(work, shared_ref, i, parts)] = i
        return losses or Aggregated(vectors, shares)

    # Actors

    def _send(self, work: RoundSum, shared_ref: Any, i: int, parts: Sequence[slice]) -> Any:
        """Let a slice's actor combine it; returns the reference to the result."""
        if i not in self._actors:
            self._actors[i] = self._start(i)
        refs = [_update(client).slices[i] for client in work.clients]
        call = self._actors[i].handle.aggregate
        return call.remote(refs, work.weights, shared_ref, parts[i], work.sliced_round)

    def _start(self, i: int) -> _Aggregator:
        """Start a slice's actor: on a node of its own, if there are enough.

        Raises:
            RuntimeError: no node with a slot is left.
        """
        bundles = {place.node_id: place.bundles[0] for place in self._placement.places()}
        if not bundles:
            raise RuntimeError("every node with a slot of this run is gone")
        nodes = [node for node in bundles if node not in self._shunned] or list(bundles)
        node = nodes[i % len(nodes)]
        make: Any = ray.remote(concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
        options = self._placement.options(bundles[node], num_gpus=0)
        handle = make(SliceActor).options(**options).remote(self._clients.algorithm, FETCH_S)
        return _Aggregator(handle, node, Pulse(handle))

    def _silent(self, running: dict[Any, int]) -> Iterator[tuple[Any, Exception]]:
        """What runs on actors that do not answer, and why they count as lost."""
        for ref, i in running.items():
            try:
                self._actors[i].pulse.check()
            except SilentError as error:
                yield ref, error

    def _lose(self, work: RoundSum, i: int, num_lost: int, error: Exception) -> Fault:
        """Discard an actor that is lost; returns the fault.

        Raises:
            RuntimeError: a slice's actors were lost too often.
        """
        actor = self._actors.pop(i)
        end(actor.handle)
        self._shunned.add(actor.node_id)
        message = f"the aggregator of slice {i + 1} of {self.num_slices} was lost"
        if num_lost > self._max_retries:
            raise RuntimeError(f"{message} {num_lost} times: {type(error).__name__}") from error
        kind = "timeout" if isinstance(error, SilentError) else fault_kind(error, actor.node_id)
        why = f"{message}: {type(error).__name__}"
        return Fault(work.round_info.round_idx, None, kind, why, num_lost, node=actor.node_id)

    def _fault(self, client: TrainedClient, kind: FaultKind, why: str) -> Fault:
        """The fault of a lost update. Its client trains again, unless it has too often."""
        outcome, report = client.outcome, client.outcome.report
        message = f"the update of client {report.client_id} was lost before it was summed: {why}"
        return Fault(
            report.round_idx,
            report.client_id,
            kind,
            message,
            attempt=outcome.attempts,
            final=outcome.attempts > self._max_retries,
            lost_s=report.train_s + (FETCH_S if kind == "timeout" else 0),
            node=outcome.node,
            error=given_up(_update(client).task, RuntimeError(message), outcome.attempts),
        )


def _update(client: TrainedClient) -> RemoteUpdate:
    assert isinstance(client.update, RemoteUpdate)
    return client.update


def _combine_here(work: RoundSum) -> Aggregated | Losses:
    try:
        return aggregate_here(work)
    except LostError as error:
        node = next(
            client.outcome.node
            for client in work.clients
            if client.outcome.report.client_id == error.client_id
        )
        return {error.client_id: (fault_kind(error.__cause__, node), str(error))}


def _on_dead_nodes(work: RoundSum) -> Losses:
    """The updates whose node is gone."""
    alive = alive_nodes()
    return {
        client.outcome.report.client_id: ("node_lost", "its node is gone")
        for client in work.clients
        if client.outcome.node not in alive
    }


def _loss_of(missing: Missing, work: RoundSum) -> Losses:
    outcome = work.clients[missing.index].outcome
    kind: FaultKind = "died" if outcome.node in alive_nodes() else "node_lost"
    kind = "timeout" if missing.timed_out else kind
    return {outcome.report.client_id: (kind, missing.message)}
