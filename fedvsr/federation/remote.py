"""What clients send and remember, where their nodes keep it: references, fetched when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
from ray.exceptions import (
    GetTimeoutError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayError,
    WorkerCrashedError,
)

from fedvsr.federation.executors import FaultKind, first_line
from fedvsr.federation.placement import alive_nodes
from fedvsr.limits import FETCH_S
from fedvsr.messages import ClientTask, LostError, Packed, Vectors
from fedvsr.params import FloatVector


@dataclass(frozen=True)
class RemoteState:
    """What a client remembers, in the object store of the node that trained it."""

    client_id: int
    node_id: str
    nbytes: int
    ref: Any

    def fetch(self) -> Vectors:
        """The vectors, as read-only views.

        Raises:
            LostError: they cannot be fetched.
        """
        vectors: Vectors = _fetch(self.client_id, self.ref)
        return vectors


@dataclass(frozen=True)
class RemoteUpdate:
    """An update in the object store of the node that made it."""

    task: ClientTask
    state: Vectors | RemoteState
    slices: Sequence[Any]
    """References to the slices of the upload, or to the whole one."""
    holder: Any = None
    """The client's live actor, if that keeps the update until it is masked for a secure sum; the
    upload is then empty."""

    @property
    def upload(self) -> dict[str, FloatVector | Packed]:
        """The upload; read-only views if it is whole. Each access fetches it anew.

        Raises:
            LostError: it cannot be fetched.
        """
        parts = [_fetch(self.task.client_id, ref) for ref in self.slices]
        whole: dict[str, FloatVector | Packed] = parts[0]
        if len(parts) > 1:
            whole = {name: np.concatenate([part[name] for part in parts]) for name in whole}
        return whole


def _fetch(client_id: int, ref: Any) -> Any:
    try:
        return ray.get(ref, timeout=FETCH_S)
    except RayError as error:
        raise LostError(client_id, first_line(error)) from error


def fault_kind(error: BaseException | None, node_id: str | None) -> FaultKind:
    """The kind of fault that an error of Ray tells of.

    Args:
        error: the error.
        node_id: where that was which is lost.
    """
    if isinstance(error, OutOfMemoryError):
        return "out_of_memory"
    if isinstance(error, RayActorError | WorkerCrashedError | ObjectLostError):
        return "died" if node_id in alive_nodes() else "node_lost"
    return "timeout" if isinstance(error, GetTimeoutError) else "died"
