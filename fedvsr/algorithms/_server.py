"""Server optimisers: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2).

The server's gradient is `-D_t`, where `D_t` is the round's average minus the global parameters. As
published, m starts at 0 and v at tau^2, without bias correction.
"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector


class AdaptiveConfig(AlgorithmConfig):
    """Settings of the adaptive server optimisers."""

    server_lr: float = Field(1e-2, gt=0, le=100, description="The server's learning rate, eta.")
    beta_1: float = Field(
        0.9, ge=0, lt=1, description="Decay rate of the server's momentum, beta_1."
    )
    tau: float = Field(
        1e-3,
        gt=0,
        le=1,
        description="Added to the root of the second moment; smaller is more adaptive.",
    )


class Adaptive(FedAvg):
    """`m <- b1 m + (1 - b1) D`, `v` by the method, `w <- w + eta m / (sqrt(v) + tau)`."""

    source = "Reddi et al., ICLR 2021"
    server_state = ("momentum", "second_moment")

    config: AdaptiveConfig

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """Take one step of Algorithm 2."""
        c = self.config
        delta = aggregated["params"] - server["params"]
        momentum = np.float32(c.beta_1) * server["momentum"] + np.float32(1 - c.beta_1) * delta
        second = self.second_moment(server["second_moment"], np.square(delta))
        step = momentum / (np.sqrt(second) + np.float32(c.tau))
        params = server["params"] + np.float32(c.server_lr) * step
        return {"params": params, "momentum": momentum, "second_moment": second}

    def initial(self, name: str) -> float:
        """0 for the momentum, tau^2 for v (the paper asks for `v >= tau^2`)."""
        return self.config.tau**2 if name == "second_moment" else 0.0

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """The next v, from the last one and D^2."""
        raise AssertionError("a method overrides this")
