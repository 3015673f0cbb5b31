"""FedNova: Wang et al., Tackling the Objective Inconsistency Problem, NeurIPS 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import ClientReport


class Config(AlgorithmConfig):
    """FedNova. Momentum is `local.momentum`, the proximal variant is `mu`."""

    name: Literal["fednova"] = "fednova"


class Algorithm(FedAvg):
    """Averages directions per effective step: `w <- w + tau_eff sum_i p_i (w_i - w) / |a_i|_1`.

    `tau_eff = sum_i p_i |a_i|_1` (Eqs. 8 and 13), where p_i are FedAvg's weights and |a_i|_1 are
    the effective steps of client i's optimiser: the number of its steps for SGD, more with
    momentum, fewer with the proximal pull. The paper treats SGD; for Adam the steps are counted.
    """

    source = "Wang et al., NeurIPS 2020"

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`tau_eff p_i / |a_i|_1`."""
        shares = super().weights(reports, num_rounds)
        steps = [report.effective_steps for report in reports]
        mean = sum(p * a for p, a in zip(shares, steps, strict=True))
        return [mean * p / a for p, a in zip(shares, steps, strict=True)]
