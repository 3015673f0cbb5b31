"""Training with all clips in one place: the upper bound of federated training."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """Ordinary training on the clips of all clients."""

    # One client has nothing to be weighed against, and shares with nobody.
    ignored = ("weights", "share", "keep")

    name: Literal["centralized"] = "centralized"


class Algorithm(FedAvg):
    """One client holds every clip. A round takes as many steps as a cohort's clients together.

    The recipe is the federated one, except that the optimiser keeps its moments from round to
    round, because nothing interrupts it.
    """

    source = "baseline"
    client_state = ("moments",)
    pooled = True
