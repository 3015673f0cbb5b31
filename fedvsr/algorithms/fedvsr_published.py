"""FedVSR as published (ACM MMSys 2026): a 3-D wavelet, and weights mixed with uniform ones.

`fedvsr` is the preprint's form: a 2-D wavelet, and loss-aware weights as they are.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms import fedvsr
from fedvsr.algorithms.base import AlgorithmConfig, Dwt, Mixing, Weights


class Config(AlgorithmConfig):
    """FedVSR's settings with the published defaults; lambda_vsr and lambda_hifr are 1 and 1."""

    name: Literal["fedvsr_published"] = "fedvsr_published"
    lambda_hifr: float = Field(1.0, ge=0, le=100, description="Weight of the wavelet detail loss.")
    dwt: Dwt = Field(
        "3d",
        description="Wavelet transform of each frame (2d) or of space and time together (3d, as "
        "published).",
    )
    weights: Weights = Field(
        "loss_aware",
        description="Aggregation weights of a round's clients: by their samples, uniform, or "
        "FedVSR's by their losses.",
    )
    mixing: Mixing = Field(
        "hellinger",
        description="loss_aware: mix with uniform weights by their Hellinger distance, as "
        "published, or not.",
    )


class Algorithm(fedvsr.Algorithm):
    """FedVSR with a wavelet transform over space and time, and Hellinger mixing of its weights.

    If the loss-aware weights are less than `mixing_threshold` away from uniform ones, the round's
    average is uniform. Further away, they count the more, the further they are.
    """

    source = "Mollaahmadi Dehaghi et al., ACM MMSys 2026"
