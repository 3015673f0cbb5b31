"""FedDisco: Ye et al., Federated Learning with Discrepancy-Aware Collaboration, ICML 2023."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
from fedvsr.messages import ClientReport


class Config(AlgorithmConfig):
    """FedDisco. It weighs clients itself; `data.partition: dirichlet` mixes labels unevenly."""

    ignored = ("weights",)

    name: Literal["feddisco"] = "feddisco"
    discrepancy: Literal["kl", "l2"] = Field(
        "kl",
        description="How far a client's labels are from uniform: kl, the Kullback-Leibler "
        "divergence as a share of the round's sum; l2, the Euclidean distance.",
    )
    a: float = Field(0.5, ge=0, le=100, description="Weight of the discrepancy.")
    b: float = Field(0.1, ge=-1, le=1, description="Added to every client's share.")


class Algorithm(FedAvg):
    """Weights `w_k = max(0, n_k - a d_k + b)`, divided by their sum (Eq. 6).

    n_k is the client's share of the round's samples. d_k is how far its distribution of labels, by
    clips, is from a uniform one over the labels of the round's clients. If no client has a weight
    above 0, they weigh n_k. Clients of one label and equal size each weigh the same, as in FedAvg.
    Clients send the number of their clips of each label, with the label's name.
    """

    source = "Ye et al., ICML 2023"
    counts_labels = True

    config: Config

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """Weights by size and discrepancy."""
        c = self.config
        total = sum(report.num_samples for report in reports)
        sizes = [report.num_samples / total for report in reports]
        pairs = zip(sizes, self._discrepancies(reports), strict=True)
        raised = [max(0.0, size - c.a * distance + c.b) for size, distance in pairs]
        whole = math.fsum(raised)
        return [value / whole for value in raised] if whole > 0 else sizes

    def _discrepancies(self, reports: Sequence[ClientReport]) -> list[float]:
        """By client, how far its distribution of labels is from the uniform one."""
        labels = sorted(set().union(*(report.label_counts for report in reports)))
        target = 1 / len(labels)
        each = list[float]()
        for report in reports:
            count = sum(report.label_counts.values())
            shares = [report.label_counts.get(label, 0) / count for label in labels]
            if self.config.discrepancy == "l2":
                each.append(math.dist(shares, [target] * len(labels)))
            else:
                each.append(math.fsum(p * math.log(p / target) for p in shares if p))
        if self.config.discrepancy == "l2":
            return each
        total = math.fsum(each)
        return [value / total for value in each] if total > 0 else each
