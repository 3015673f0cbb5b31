"""All clips in one place: the upper bound that federated training is measured against."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """Ordinary training on the clips of all clients."""

    name: Literal["centralized"] = "centralized"


class Algorithm(FedAvg):
    """One client holds every clip. A round takes as many steps as a cohort's clients together.

    The recipe is the federated one, but for the optimiser, which keeps its moments from round to
    round, as nothing interrupts it.
    """

    source = "baseline"
    client_state = ("moments",)
    pooled = True
