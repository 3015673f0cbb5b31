"""FedAvg: McMahan et al., Communication-Efficient Learning of Deep Networks, AISTATS 2017."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms._base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """FedAvg has no settings of its own."""

    name: Literal["fedavg"] = "fedavg"


class Algorithm(FedAvg):
    """`w <- sum_k (n_k / n) w_k` over the round's clients (Algorithm 1, line 8)."""

    source = "McMahan et al., AISTATS 2017"
