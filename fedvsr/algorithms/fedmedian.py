"""Coordinate-wise median: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms._robust import CoordinateWise, RobustConfig, mean_of_rows, sorted_rows
from fedvsr.params import FloatVector


class Config(RobustConfig):
    """The median has no settings of its own."""

    name: Literal["fedmedian"] = "fedmedian"


class Algorithm(CoordinateWise):
    """`w_j <- median_k w_kj`, over clients k, in every coordinate j (Algorithm 1, option I)."""

    source = "Yin et al., ICML 2018"

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """The median; of an even number of values, the mean of the middle two."""
        ordered, count = sorted_rows(values_KC), len(values_KC)
        return mean_of_rows(ordered[(count - 1) // 2 : count // 2 + 1])
