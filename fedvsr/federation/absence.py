"""Clients that are absent from a round because no node is left on which they may train."""

from __future__ import annotations

from fedvsr.data.owners import Owners, shown
from fedvsr.errors import UserError
from fedvsr.federation.executors import Fault
from fedvsr.messages import ClientTask


def absent(task: ClientTask, owners: Owners, attempt: int = 1) -> Fault:
    """The final fault of a task that no living node may take.

    Args:
        task: the client's task.
        owners: says whose client it is.
        attempt: which start of the task it would be.
    """
    error = no_node(owners, owners.of(task.client_id))
    return Fault(
        task.round_idx,
        task.client_id,
        "node_lost",
        f"client {task.client_id} in round {task.round_idx}: {error}",
        attempt=attempt,
        final=True,
        error=error,
    )


def no_node(owners: Owners, name: str) -> UserError:
    """Why an owner's clients are absent: what ends the run if it cannot do without them."""
    if not name:
        return UserError("every node with a slot of this run is gone; start nodes, then --resume")
    labels = shown(owners.labels(name))
    return UserError(
        f"no node of owner {name} ({labels}) is alive; start one with `ray start --labels {labels}`"
        ", then --resume; federation.min_updates lets rounds close without an owner"
    )
