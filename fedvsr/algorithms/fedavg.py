"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """FedAvg has no settings of its own."""

    name: Literal["fedavg"] = "fedavg"


class Algorithm(FedAvg):
    """`w <- sum_k (n_k / n) w_k` over the round's clients (Algorithm 1).

    w_k are client k's parameters, n_k is the number of samples that it drew in the round, and n
    their sum. With `local.epochs`, n_k is proportional to the client's frames; with `local.steps`
    it is the same for all clients.
    """

    source = "McMahan et al., AISTATS 2017"
