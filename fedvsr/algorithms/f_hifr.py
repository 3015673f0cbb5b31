"""F-HiFr, an ablation of FedVSR (Table 2): the detail loss alone, with FedAvg's weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig


class Config(AlgorithmConfig):
    """FedVSR's settings with other defaults."""

    name: Literal["f_hifr"] = "f_hifr"
    lambda_hifr: float = Field(1.0, ge=0, le=100, description="Weight of the wavelet detail loss.")


class Algorithm(fedvsr.Algorithm):
    """FedAvg with the wavelet detail loss."""
