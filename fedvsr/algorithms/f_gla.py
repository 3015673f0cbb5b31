"""F-GLA, an ablation of FedVSR (Table 2): loss-aware weights alike in every round, alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr


class Config(fedvsr.Config):
    """FedVSR's settings; only the defaults differ."""

    name: Literal["f_gla"] = "f_gla"  # type: ignore[assignment]
    lambda_hifr: float = Field(0.0, ge=0, le=100, description="Weight of the wavelet detail loss.")
    decay: Literal["linear", "power", "none"] = Field(
        "none", description="Course of the exponent over the rounds: see fedvsr; here none."
    )


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent stays."""

    extra_compute = "none"
