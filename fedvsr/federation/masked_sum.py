"""The secure sum on Ray: each client's process masks what it holds, and the driver adds it up.

The driver passes public keys on and sees masked updates. Private keys and updates stay in the
processes of the clients, see `masking`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from fedvsr.algorithms.base import Aggregated
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.executors import Clients, FaultKind
from fedvsr.federation.masking import MaskRequest, quantum_of, unmasked
from fedvsr.federation.placement import Placement
from fedvsr.federation.remote import RemoteUpdate, fault_kind
from fedvsr.limits import FETCH_S
from fedvsr.training.updates import UpdateConfig

# Seconds between two checks of the processes, and of whether to stop.
_POLL_S = 1.0

Losses = dict[int, tuple[FaultKind, str]]
"""By client whose update is lost: how, and why."""


def require_room(clients: Clients, cohort: int, placement: Placement) -> None:
    """Check that the processes of a round's clients can live side by side until they are summed.

    Raises:
        UserError: they cannot: each holds a share of a GPU, and a GPU has too few.
    """
    # The scorer may hold a share too.
    most = placement.max_live_per_place - 1
    if clients.update.secure_sum and cohort > most:
        raise UserError(
            f"update.secure_sum keeps the processes of all {cohort} clients of a round, and a GPU "
            f"has room for {most:g} besides the scorer's; lower cluster.gpu_share or "
            "federation.clients_per_round"
        )


def masked_sum(work: RoundSum, config: UpdateConfig, stop: threading.Event) -> Aggregated | Losses:
    """Let a round's clients mask their updates, and add these up.

    Args:
        work: the round; each update is a `RemoteUpdate` with a holder.
        config: says the range of updates.
        stop: ends the wait with KeyboardInterrupt once another thread sets it.

    Returns:
        The sum; or which clients are lost, whose masks then remain in the other updates: these are
        of no use, and nobody can read them.
    """
    holders = _holders(work)
    losses = Losses()
    asked = {i: holder.handle.open_key.remote() for i, holder in holders.items()}
    keys: dict[int, bytes] = dict(_answers(asked, holders, losses, stop))
    if losses:
        return losses
    # In the order of the round, not in that of arrival.
    keys = {client_id: keys[client_id] for client_id in holders}
    quantum = quantum_of(work.weights, config)
    round_idx = work.round_info.round_idx
    asked = {
        i: holder.handle.mask.remote(MaskRequest(i, round_idx, keys, weight, quantum))
        for (i, holder), weight in zip(holders.items(), work.weights, strict=True)
    }
    masked = (values for _, values in _answers(asked, holders, losses, stop))
    result = unmasked(masked, work, quantum)
    return losses or result


def _holders(work: RoundSum) -> dict[int, Any]:
    holders = dict[int, Any]()
    for client in work.clients:
        assert isinstance(client.update, RemoteUpdate)
        holders[client.outcome.report.client_id] = client.update.holder
    return holders


@dataclass
class _Waiting:
    """What is asked of a process."""

    client_id: int
    holder: Any
    since: float = field(default_factory=time.monotonic)

    def check(self) -> None:
        """Raise TimeoutError if its process does not answer, or takes too long."""
        self.holder.pulse.check()
        if time.monotonic() - self.since > FETCH_S:
            raise TimeoutError(f"it did not mask its update within {FETCH_S:g} s")


def _answers(
    asked: Mapping[int, Any], holders: Mapping[int, Any], losses: Losses, stop: threading.Event
) -> Iterator[tuple[int, Any]]:
    """What processes answer, as it arrives, by client; notes those that are lost."""
    waiting = {ref: _Waiting(client_id, holders[client_id]) for client_id, ref in asked.items()}
    while waiting:
        done, _ = ray.wait(list(waiting), num_returns=1, timeout=_POLL_S)
        if stop.is_set():
            raise KeyboardInterrupt
        for ref in done:
            client_id, holder = waiting[ref].client_id, waiting.pop(ref).holder
            try:
                answer = ray.get(ref, timeout=FETCH_S)
            except RayTaskError as error:
                # A mistake in the program: the same request would be refused again.
                raise error.cause from error
            except RayError as error:
                kind = fault_kind(error, holder.place.node_id)
                losses[client_id] = (kind, f"its process is gone ({type(error).__name__})")
                continue
            yield client_id, answer
            del answer
        for ref, each in list(waiting.items()):
            try:
                each.check()
            except TimeoutError as error:
                del waiting[ref]
                losses[each.client_id] = ("timeout", str(error))
