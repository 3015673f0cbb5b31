"""F-ALA, an ablation of FedVSR (Table 2): decaying loss-aware weights alone."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr


class Config(fedvsr.Config):
    """FedVSR's settings; only the defaults differ."""

    name: Literal["f_ala"] = "f_ala"  # type: ignore[assignment]
    lambda_hifr: float = Field(0.0, ge=0, le=100, description="Weight of the wavelet detail loss.")


class Algorithm(fedvsr.Algorithm):
    """FedAvg with loss-aware weights whose exponent decays over the rounds."""

    extra_compute = "none"
