"""F-GLA, an ablation of FedVSR (Table 2): loss-aware weights alike in every round, alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig


class Config(AlgorithmConfig):
    """Only defaults differ from FedVSR's."""

    name: Literal["f_gla"] = "f_gla"
    weights: Literal["samples", "uniform", "loss_aware"] = Field(
        "loss_aware", description="Of the round's clients: by samples, alike, or FedVSR's by loss."
    )
    decay: Literal["linear", "power", "none"] = Field(
        "none", description="Course of the exponent over the rounds: see fedvsr; here none."
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent stays."""

    extra_compute = "none"
