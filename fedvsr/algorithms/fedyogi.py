"""FedYogi: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms._server import Adaptive, AdaptiveConfig
from fedvsr.params import FloatVector


class Config(AdaptiveConfig):
    """Settings of FedYogi."""

    name: Literal["fedyogi"] = "fedyogi"
    beta_2: float = Field(0.99, ge=0, lt=1, description="Decay rate of the second moment.")


class Algorithm(Adaptive):
    """`v <- v - (1 - b2) D^2 sign(v - D^2)`, `w <- w + eta m / (sqrt(v) + tau)`.

    D is the round's average minus the global parameters w, and `m <- b1 m + (1 - b1) D`; m starts
    at 0 and v at tau^2. b1 is `beta_1`, b2 `beta_2` and eta `server_lr`.
    """

    config: Config

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """The last v, moved towards D^2 by a step in proportion to D^2."""
        beta = self.config.beta_2
        moved: FloatVector = second - np.float32(1 - beta) * squared * np.sign(second - squared)
        return moved
