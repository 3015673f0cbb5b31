"""F-ALA, an ablation of FedVSR (Table 2): decaying loss-aware weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig, Weights


class Config(AlgorithmConfig):
    """FedVSR's settings with other defaults."""

    name: Literal["f_ala"] = "f_ala"
    weights: Weights = Field(
        "loss_aware",
        description="Aggregation weights of a round's clients: by their samples, uniform, or "
        "FedVSR's by their losses.",
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent decays over the rounds."""

    extra_compute = "none"
