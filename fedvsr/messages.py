"""What travels between the driver and the clients, besides the flat parameter vectors."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ClientTask:
    """One client's work in one round. Equal tasks give equal bits, wherever they are run."""

    client_id: int
    round_idx: int
    """From 1."""
    num_rounds: int
    """Of the whole run: schedules go by it."""
    seed: int
    """Seeds this client's draws in this round: samples, crops, dropout."""


@dataclass(frozen=True)
class ClientReport:
    """What a client tells of its local training. No frame and no path leaves a client."""

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
    """Wall seconds of local training. The only field that differs between equal tasks."""
