"""F-ALA, an ablation of FedVSR (Table 2): decaying loss-aware weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig


class Config(AlgorithmConfig):
    """Only defaults differ from FedVSR's."""

    name: Literal["f_ala"] = "f_ala"
    weights: Literal["samples", "uniform", "loss_aware"] = Field(
        "loss_aware", description="Of the round's clients: by samples, alike, or FedVSR's by loss."
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent decays over the rounds."""

    extra_compute = "none"
