"""FedAdam: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms._server import Adaptive, AdaptiveConfig
from fedvsr.params import FloatVector


class Config(AdaptiveConfig):
    """Settings of FedAdam."""

    name: Literal["fedadam"] = "fedadam"
    beta_2: float = Field(0.99, ge=0, lt=1, description="Decay rate of the second moment.")


class Algorithm(Adaptive):
    """`v <- b2 v + (1 - b2) D^2`, `w <- w + eta m / (sqrt(v) + tau)`.

    D is the round's average minus the global parameters w, and `m <- b1 m + (1 - b1) D`; m starts
    at 0 and v at tau^2. b1 is `beta_1`, b2 `beta_2` and eta `server_lr`.
    """

    config: Config

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """The moving mean of squares."""
        beta = self.config.beta_2
        return np.float32(beta) * second + np.float32(1 - beta) * squared
