"""FedAvgM: Hsu et al., Measuring the Effects of Non-Identical Data Distribution, 2019."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors


class Config(AlgorithmConfig):
    """FedAvg with momentum at the server."""

    name: Literal["fedavgm"] = "fedavgm"
    server_lr: float = Field(1.0, gt=0, le=100, description="The server's learning rate, eta.")
    beta: float = Field(0.9, ge=0, lt=1, description="Server momentum; 0 is FedAvg.")


class Algorithm(FedAvg):
    """`v <- beta v + D`, `w <- w + eta v`, where D is the round's average minus the parameters w.

    v starts at 0; eta is `server_lr`.
    """

    source = "Hsu et al., arXiv 1909.06335"
    server_state = ("momentum",)

    config: Config

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """Take one step of SGD with momentum along `D`."""
        c = self.config
        delta = aggregated["params"] - server["params"]
        momentum = np.float32(c.beta) * server["momentum"] + delta
        params = server["params"] + np.float32(c.server_lr) * momentum
        return {"params": params, "momentum": momentum}
