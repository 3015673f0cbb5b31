"""q-FFL: Li et al., Fair Resource Allocation in Federated Learning, ICLR 2020."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Annotated, Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import ClientReport
from fedvsr.section import OnlyWith


class Config(AlgorithmConfig):
    """q-FedAvg, the published solver of q-FFL."""

    name: Literal["qffl"] = "qffl"
    weights: Literal["uniform"] = Field(
        "uniform", description="q-FFL weighs clients itself, by loss and length of the update."
    )
    q: float = Field(1.0, ge=0, le=100, description="Fairness; 0 is uniform averaging.")
    lipschitz: Annotated[float | None, OnlyWith("q", above=0)] = Field(
        None,
        gt=0,
        description="L of Algorithm 2 (default: 1 / local.lr for SGD; for Adam, the mean ratio of "
        "gradient to update length over the round's clients).",
    )


class Algorithm(FedAvg):
    """`w <- w - sum_k D_k / sum_k h_k`, where clients with a high loss pull harder (Algorithm 2).

    `D_k = F_k^q L (w - w_k)` and `h_k = q F_k^(q-1) L^2 |w - w_k|^2 + L F_k^q`. F_k is the loss of
    the client's first batch under the global network: an unbiased estimate of the loss over all its
    data, which would cost another pass. L turns updates into gradients. The paper's 1 / local.lr is
    right only for SGD: Adam's updates are thousands of times as long, and their square in `h_k`
    would stop all movement. For Adam, L is |gradient| / |w - w_k|, with the client's first
    gradient, a mean over the round's clients.
    """

    source = "Li et al., ICLR 2020"

    config: Config

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`F_k^q L / sum_j h_j`."""
        q = self.config.q
        lipschitz = self.config.lipschitz or fmean(report.lipschitz for report in reports)
        pulls, curvatures = list[float](), list[float]()
        for report in reports:
            squared = (lipschitz * report.update_norm) ** 2
            pulls.append(report.first_loss**q * lipschitz)
            curvatures.append(q * report.first_loss ** (q - 1) * squared + pulls[-1])
        return [pull / sum(curvatures) for pull in pulls]
