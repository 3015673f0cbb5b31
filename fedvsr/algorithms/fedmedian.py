"""Coordinate-wise median: Yin et al., Byzantine-Robust Distributed Learning, ICML 2018."""

from __future__ import annotations

from typing import Literal

import numpy as np

from fedvsr.algorithms._robust import CoordinateWise, RobustConfig
from fedvsr.params import FloatVector


class Config(RobustConfig):
    """The median has no settings of its own."""

    name: Literal["fedmedian"] = "fedmedian"


class Algorithm(CoordinateWise):
    """The median of the clients' values in every coordinate (Algorithm 1, option I)."""

    source = "Yin et al., ICML 2018"

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """Of an even number the mean of the middle two."""
        median: FloatVector = np.median(values_KC, axis=0)
        return median
