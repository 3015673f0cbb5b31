"""FedVSR: Mollaahmadi Dehaghi et al., Model-Agnostic Federated Learning in Video Super-Resolution.

Local loss (Eq. 11) `lambda_vsr * L_VSR + lambda_hifr * L_HiFr`, and loss-aware aggregation
(Section 4.2, Algorithm 1): client i weighs `I_i^a / sum_j I_j^a` with `I_i = 1 / L_i`, L_i its mean
local loss. Round t of T.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field
from torch import Tensor

from fedvsr.algorithms._base import FedAvg
from fedvsr.errors import UserError
from fedvsr.losses import Reduction, high_frequency
from fedvsr.messages import ClientReport
from fedvsr.section import NamedSection
from fedvsr.wavelets import filters

# Below this Hellinger distance the published implementation averages plainly.
_HELLINGER_THRESHOLD = 0.05


class Config(NamedSection):
    """The paper's best (lambda_vsr, lambda_hifr): VRT (1, 1), RVRT (1, 0.5), IART (0.5, 0.5)."""

    name: Literal["fedvsr"] = "fedvsr"
    lambda_vsr: float = Field(1.0, ge=0, le=100, description="Weight of the network's own loss.")
    lambda_hifr: float = Field(1.0, ge=0, le=100, description="Weight of the wavelet detail loss.")
    dwt: Literal["2d", "3d"] = Field(
        "2d", description="Transform each frame (the paper) or space and time together (its code)."
    )
    wavelet: str = Field("haar", description="Any orthogonal wavelet of PyWavelets.")
    reduction: Reduction = Field(
        "mean", description="Over the detail coefficients: mean, or the sum that Eq. 10 writes."
    )
    alpha: float = Field(1.0, gt=0, le=100, description="Exponent of 1 / loss before any decay.")
    decay: Literal["linear", "power", "none"] = Field(
        "linear",
        description="Exponent in round t of T: alpha * (1 - t/T), which ends in plain averaging as "
        "the paper's prose says; alpha ** (1 - t/T), the formula it prints; or alpha throughout.",
    )
    mixing: Literal["none", "hellinger"] = Field(
        "none",
        description="Mix with uniform weights by their Hellinger distance, as the paper's code.",
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        filters(self.wavelet)
        if self.lambda_vsr == self.lambda_hifr == 0:
            raise UserError("lambda_vsr and lambda_hifr are both 0: there is nothing to minimise")


class Algorithm(FedAvg):
    """FedAvg with the wavelet detail loss and loss-aware weights. Stateless and model-agnostic."""

    config: Config

    def local_loss(self, vsr_loss: Tensor, sr_BTCHW: Tensor, gt_BTCHW: Tensor) -> Tensor:
        """Eq. 11."""
        c = self.config
        if c.lambda_hifr == 0:
            return c.lambda_vsr * vsr_loss
        detail = high_frequency(sr_BTCHW, gt_BTCHW, c.dwt, c.wavelet, reduction=c.reduction)
        return c.lambda_vsr * vsr_loss + c.lambda_hifr * detail

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`I_i^a / sum_j I_j^a`, mixed with uniform weights if the configuration says so."""
        exponent = self.exponent(reports[0].round_idx, num_rounds)
        # In logarithms: no overflow for small losses and large exponents.
        logs = [-exponent * math.log(report.loss) for report in reports]
        powers = [math.exp(log - max(logs)) for log in logs]
        weights = [power / sum(powers) for power in powers]
        return mix_by_hellinger(weights) if self.config.mixing == "hellinger" else weights

    def exponent(self, round_idx: int, num_rounds: int) -> float:
        """The exponent a in round t = `round_idx` (1 to T) of T = `num_rounds`."""
        c, left = self.config, 1 - round_idx / num_rounds
        if c.decay == "linear":
            return c.alpha * left
        return c.alpha**left if c.decay == "power" else c.alpha


def mix_by_hellinger(weights: Sequence[float]) -> list[float]:
    """Mix weights p with uniform ones u: `(1 - m) u + m p`.

    `m = max(0, h - 0.05) / 0.95` with h the Hellinger distance of p and u. Not in the paper: from
    its published implementation. Below a relative spread of about 14 % it is the plain mean.
    """
    uniform = 1 / len(weights)
    squares = sum((math.sqrt(uniform) - math.sqrt(p)) ** 2 for p in weights)
    distance = math.sqrt(0.5 * squares)
    share = max(0.0, distance - _HELLINGER_THRESHOLD) / (1 - _HELLINGER_THRESHOLD)
    return [(1 - share) * uniform + share * p for p in weights]
