"""Coordinate-wise trimmed mean: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms._robust import CoordinateWise, RobustConfig, mean_of_rows, sorted_rows
from fedvsr.params import FloatVector


class Config(RobustConfig):
    """The trimmed mean."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    beta: float = Field(
        0.25, ge=0, lt=0.5, description="Part of the clients that is left out at each end."
    )


class Algorithm(CoordinateWise):
    """In every coordinate, the mean of K clients without the `floor(beta K)` at each end.

    Algorithm 1, option II: the largest and the smallest values are left out.
    """

    source = "Yin et al., ICML 2018"

    config: Config

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """The mean of the values in between, `(K, C)` to `(C,)`."""
        count = len(values_KC)
        trim = int(self.config.beta * count)
        ordered = sorted_rows(values_KC)
        return mean_of_rows(ordered[trim : count - trim])
