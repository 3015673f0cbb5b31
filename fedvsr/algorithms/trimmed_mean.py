"""Coordinate-wise trimmed mean: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018."""

from __future__ import annotations

from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms._robust import CoordinateWise, RobustConfig, sorted_rows
from fedvsr.params import FloatVector


class Config(RobustConfig):
    """The trimmed mean."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    beta: float = Field(
        0.25, ge=0, lt=0.5, description="Part of the clients left out at either end."
    )


class Algorithm(CoordinateWise):
    """In every coordinate the mean of K clients without the `floor(beta K)` largest and smallest.

    Algorithm 1, option II.
    """

    source = "Yin et al., ICML 2018"

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """Leaves out `floor(beta K)` values at either end."""
        count = len(values_KC)
        trim = int(self.config.beta * count)
        ordered = sorted_rows(values_KC)
        mean: FloatVector = ordered[trim : count - trim].mean(axis=0, dtype=np.float32)
        return mean
