"""What travels between the driver and the clients. P is the number of parameters."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from fedvsr.params import FloatVector

Vectors = dict[str, FloatVector]
"""Flat vectors (P,) by name; the network's parameters are `params`. Those of
`Algorithm.cohort_state` are (K * P,)."""


class Packed(Protocol):
    """A vector (P,) in fewer bytes."""

    @property
    def nbytes(self) -> int:
        """Size on the wire."""
        ...

    def unpack(self) -> FloatVector:
        """The vector (P,), as exactly as the packing kept it."""
        ...


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round. Equal tasks give equal bits, wherever they run."""

    client_id: int
    round_idx: int
    """From 1."""
    num_rounds: int
    """Rounds of the whole run, which learning rate schedules depend on."""
    seed: int
    """Seed of this client's draws in this round: samples, crops, dropout."""


@dataclass(frozen=True)
class ClientReport:
    """A client's report on its local training: numbers only, no frame and no path."""

    client_id: int
    round_idx: int
    num_samples: int
    """Training samples the client drew this round (FedAvg's n_k)."""
    num_steps: int
    """Optimiser steps taken."""
    loss: float
    """Mean local loss over the steps, the algorithm's terms included (Algorithm 1's L_i)."""
    vsr_loss: float
    """Mean of the network's own term L_VSR alone."""
    train_s: float
    """Wall seconds of local training. Equal tasks differ only in the three times, and in what they
    take of a machine."""
    first_loss: float = 0.0
    """Local loss of the first batch, under the global parameters."""
    lr: float = 0.0
    """Mean learning rate over the steps."""
    effective_steps: float = 0.0
    """FedNova's |a|_1: the displacement that a gradient of 1 at every step makes, over `lr`."""
    lipschitz: float = 0.0
    """q-FFL's L: a change of the parameters times this is a gradient."""
    update_norm: float = 0.0
    """L2 norm of the client's parameters minus the global ones."""
    upload_bytes: int = 0
    """Size of the upload."""
    state_bytes: int = 0
    """Size of what the client remembers."""
    finite: bool = True
    """Whether the loss and every uploaded value are finite; if not, nothing was uploaded."""
    input_wait_s: float = 0.0
    """Wall seconds of `train_s` in which training waited for samples."""
    energy_j: float = 0.0
    """Joules of its GPU, or of all processors of its machine, while it trained; 0 if unknown."""
    gpu_memory_bytes: int = 0
    """Peak of the GPU memory that its tensors took; 0 without a GPU."""
    gpu_utilisation: float = 0.0
    """Share of its time in which its GPU computed, 0 to 1; 0 if unknown."""
    started_at: float = 0.0
    """When training began, seconds since 1970 by the clock of its node."""
    label_counts: Mapping[str, int] = field(default_factory=dict)
    """The client's clips by label; empty unless the algorithm counts labels."""


@dataclass(frozen=True)
class ClientUpdate:
    """The result of a client's training."""

    upload: Mapping[str, FloatVector | Packed]
    """For the server: `params`, the client's parameters (P,) or their packed change, and the
    algorithm's other vectors."""
    state: Vectors
    """Vectors that the client remembers until it is drawn again."""


class LostError(Exception):
    """What a client sent or remembers is lost, with the process or node that kept it."""

    def __init__(self, client_id: int, why: str) -> None:
        super().__init__(why)
        self.client_id = client_id


class Elsewhere(Protocol):
    """What a client remembers, if it lies on another node."""

    @property
    def nbytes(self) -> int:
        """Size of all its vectors."""
        ...

    def fetch(self) -> Vectors:
        """The vectors; may raise LostError."""
        ...


class Update(Protocol):
    """The result of a client's training, wherever it lies: `ClientUpdate`, or what fetches one."""

    @property
    def upload(self) -> Mapping[str, FloatVector | Packed]:
        """See `ClientUpdate.upload`. Each access may fetch it again, or raise LostError."""
        ...

    @property
    def state(self) -> Vectors | Elsewhere:
        """See `ClientUpdate.state`."""
        ...


@dataclass(frozen=True)
class Round:
    """What the server's half of an algorithm knows about a round."""

    round_idx: int
    """From 1."""
    num_rounds: int
    num_clients: int
    """Registered clients."""
    num_sampled: int
    """Clients whose updates are aggregated in this round."""
    tensors: tuple[slice, ...]
    """Where in a vector (P,) each parameter tensor lies."""
