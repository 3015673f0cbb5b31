"""FedAdagrad: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2)."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms._server import Adaptive, AdaptiveConfig
from fedvsr.params import FloatVector


class Config(AdaptiveConfig):
    """Settings of FedAdagrad."""

    name: Literal["fedadagrad"] = "fedadagrad"


class Algorithm(Adaptive):
    """`v <- v + D^2`, `w <- w + eta m / (sqrt(v) + tau)`.

    D is the round's average minus the global parameters w, and `m <- b1 m + (1 - b1) D`; m starts
    at 0 and v at tau^2. b1 is `beta_1` and eta `server_lr`.
    """

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """The sum of squares so far."""
        return second + squared
