"""Krum: Blanchard et al., Machine Learning with Adversaries, NeurIPS 2017."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvsr.algorithms._robust import CHUNK, RobustConfig
from fedvsr.algorithms.base import Aggregated, FedAvg
from fedvsr.errors import UserError
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector, weighted_sum


class Config(RobustConfig):
    """Krum and, with `num_selected` above 1, Multi-Krum."""

    name: Literal["krum"] = "krum"
    num_byzantine: int = Field(
        1, ge=0, description="Clients of a round that may lie, f; it takes 2 f + 3 to tell."
    )
    num_selected: int = Field(1, ge=1, description="Clients to average, those of the best scores.")


class Algorithm(FedAvg):
    """The vector w_k of least `sum_i |w_k - w_i|^2`, over its K - f - 2 nearest w_i (Section 4).

    K are the round's clients, f `num_byzantine`. Multi-Krum takes the mean of the `num_selected`
    least.
    """

    source = "Blanchard et al., NeurIPS 2017"

    def require_cohort(self, count: int) -> None:
        """K >= 2 f + 3, of which at least `num_selected` are honest."""
        f, selected = self.config.num_byzantine, self.config.num_selected
        if count < 2 * f + 3 or selected > count - f:
            raise UserError(
                f"algorithm.num_byzantine = {f} and num_selected = {selected} need at least "
                f"{max(2 * f + 3, selected + f)} clients a round, not {count}; raise "
                "federation.clients_per_round"
            )

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """The weights that count are 1 / `num_selected` for those selected, in sampled order.

        Raises:
            UserError: there are too few clients for that many liars.
        """
        vectors = [upload["params"] for upload in uploads]
        f, selected, count = self.config.num_byzantine, self.config.num_selected, len(vectors)
        # Fewer than configured may have been reached.
        self.require_cohort(count)
        distances = squared_distances(vectors)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, : count - f - 2].sum(axis=1)
        best = set(np.argsort(scores, kind="stable")[:selected].tolist())
        share = [1 / selected if i in best else 0.0 for i in range(count)]
        chosen = (vectors[i] for i in sorted(best))
        return Aggregated({"params": weighted_sum(chosen, [1 / selected] * selected)}, share)


def squared_distances(vectors: Sequence[FloatVector]) -> npt.NDArray[np.float64]:
    """Squared L2 distances (K, K) of K vectors (P,), a chunk of coordinates at a time."""
    count = len(vectors)
    total = np.zeros((count, count))
    for begin in range(0, vectors[0].size, CHUNK):
        parts = [vector[begin : begin + CHUNK] for vector in vectors]
        for i in range(count):
            for j in range(i):
                apart = parts[i] - parts[j]
                total[i, j] += np.dot(apart, apart)
    return total + total.T
