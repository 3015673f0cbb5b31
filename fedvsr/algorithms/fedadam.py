"""FedAdam: Reddi et al., Adaptive Federated Optimization, ICLR 2021 (Algorithm 2)."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms._server import Adaptive, AdaptiveConfig
from fedvsr.params import FloatVector


class Config(AdaptiveConfig):
    """FedAdam's settings."""

    name: Literal["fedadam"] = "fedadam"
    beta_2: float = Field(0.99, ge=0, lt=1, description="Decay of the second moment.")


class Algorithm(Adaptive):
    """FedAvg's average as a gradient for FedAdam's server: `v <- b2 v + (1 - b2) D^2`."""

    def second_moment(self, second: FloatVector, squared: FloatVector) -> FloatVector:
        """A moving mean of squares."""
        beta = self.config.beta_2
        return np.float32(beta) * second + np.float32(1 - beta) * squared
