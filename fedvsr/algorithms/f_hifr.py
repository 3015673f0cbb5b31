"""F-HiFr, an ablation of FedVSR (Table 2): the detail loss alone, with FedAvg's weights."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr


class Config(fedvsr.Config):
    """FedVSR's settings; only the defaults differ."""

    name: Literal["f_hifr"] = "f_hifr"  # type: ignore[assignment]
    weights: Literal["samples", "uniform", "loss_aware"] = Field(
        "samples", description="Of the round's clients: by samples, alike, or FedVSR's by loss."
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with the wavelet detail loss."""
