"""FedAdagrad: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2)."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms._server import Adaptive, AdaptiveConfig
from fedvsr.params import FloatVector


class Config(AdaptiveConfig):
    """FedAdagrad's settings."""

    name: Literal["fedadagrad"] = "fedadagrad"


class Algorithm(Adaptive):
    """FedAvg's average as a gradient for FedAdagrad's server: `v <- v + D^2`."""

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """A sum of squares."""
        return second + squared
