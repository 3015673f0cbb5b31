"""q-FFL: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from fedvsr.algorithms._base import AlgorithmConfig, FedAvg
from fedvsr.messages import ClientReport


class Config(AlgorithmConfig):
    """q-FedAvg, the published solver of q-FFL."""

    name: Literal["qffl"] = "qffl"
    weights: Literal["uniform"] = Field(
        "uniform", description="q-FFL weighs by loss and step length itself."
    )
    q: float = Field(1.0, ge=0, le=100, description="Fairness: 0 averages plainly.")
    lipschitz: float | None = Field(
        None, gt=0, description="L of Algorithm 2 (default: 1 / local.lr, right for SGD)."
    )


class Algorithm(FedAvg):
    """`w <- w - sum_k D_k / sum_k h_k` with clients of high loss pulling harder (Algorithm 2).

    `D_k = F_k^q L (w - w_k)` and `h_k = q F_k^(q-1) L^2 |w - w_k|^2 + L F_k^q`. F_k is the loss of
    the client's first batch under the global network, an unbiased estimate of the loss over all its
    data, which would cost another pass.
    """

    source = "Li et al., ICLR 2020"

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`F_k^q L / sum_j h_j`."""
        q = self.config.q
        pulls, curvatures = list[float](), list[float]()
        for report in reports:
            lipschitz = self.config.lipschitz or 1 / report.lr
            squared = (lipschitz * report.update_norm) ** 2
            pulls.append(report.first_loss**q * lipschitz)
            curvatures.append(q * report.first_loss ** (q - 1) * squared + pulls[-1])
        return [pull / sum(curvatures) for pull in pulls]
