"""FedProx: Li et al., Federated Optimization in Heterogeneous Networks, MLSys 2020."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg


class Config(AlgorithmConfig):
    """FedProx. The FedVSR paper finds that super-resolution fails with a larger mu."""

    name: Literal["fedprox"] = "fedprox"
    mu: float = Field(
        1e-3, ge=0, le=1000, description="Strength of FedProx's pull to the global network."
    )


class Algorithm(FedAvg):
    """FedAvg with `mu / 2 * |w - w_t|^2` added to the local loss (Eq. 2).

    w are the client's parameters, w_t the global ones. The term's gradient `mu (w - w_t)` is added
    exactly, for every optimiser.
    """

    source = "Li et al., MLSys 2020"
    extra_compute = "one difference of parameters a step"
