"""F-GLA, an ablation of FedVSR (Table 2): loss-aware weights without decay alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig, Decay, Weights


class Config(AlgorithmConfig):
    """FedVSR's settings with other defaults."""

    name: Literal["f_gla"] = "f_gla"
    weights: Weights = Field(
        "loss_aware",
        description="Aggregation weights of a round's clients: by their samples, uniform, or "
        "FedVSR's by their losses.",
    )
    decay: Decay = Field(
        "none", description="Course of the exponent over the rounds, as for fedvsr; here none."
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent is the same in every round."""

    extra_compute = "none"
