"""FedVSR: Mollaahmadi Dehaghi et al., Model-Agnostic Federated Learning in Video Super-Resolution.

Local loss (Eq. 11) `lambda_vsr * L_VSR + lambda_hifr * L_HiFr`, and loss-aware aggregation
(Section 4.2, Algorithm 1): client i has the weight `I_i^a / sum_j I_j^a` with `I_i = 1 / L_i`,
where L_i is its mean local loss. Every algorithm has both as settings; here they are on.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg, Weights


class Config(AlgorithmConfig):
    """The paper's best (lambda_vsr, lambda_hifr): VRT (1, 1), RVRT (1, 0.5), IART (0.5, 0.5)."""

    name: Literal["fedvsr"] = "fedvsr"
    lambda_hifr: float = Field(1.0, ge=0, le=100, description="Weight of the wavelet detail loss.")
    weights: Weights = Field(
        "loss_aware",
        description="Aggregation weights of a round's clients: by their samples, uniform, or "
        "FedVSR's by their losses.",
    )


class Algorithm(FedAvg):
    """FedAvg with the wavelet detail loss and loss-aware weights. Stateless and model-agnostic."""

    source = "Mollaahmadi Dehaghi et al., arXiv 2503.13745"
    extra_compute = "one wavelet transform of a batch's error"
