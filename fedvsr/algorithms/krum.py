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
        1, ge=0, description="Clients of a round that may lie, f; this needs 2 f + 3 clients."
    )
    num_selected: int = Field(
        1, ge=1, description="Clients that are averaged: those with the lowest scores."
    )


class Algorithm(FedAvg):
    """The vector w_k of least `sum_i |w_k - w_i|^2`, over its K - f - 2 nearest w_i (Section 4).

    K is the number of the round's clients, f is `num_byzantine`. Multi-Krum takes the mean of the
    `num_selected` vectors with the least sums.
    """

    source = "Blanchard et al., NeurIPS 2017"

    config: Config

    def require_cohort(self, count: int) -> None:
        """Check that K >= 2 f + 3, and that at least `num_selected` clients are honest.

        Raises:
            UserError: there are too few clients.
        """
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
        round_info: Round,
    ) -> Aggregated:
        """Average the selected clients, each with weight 1 / `num_selected`, in sampled order.

        Raises:
            UserError: too few clients finished the round.
        """
        vectors = [upload["params"] for upload in uploads]
        f, selected, count = self.config.num_byzantine, self.config.num_selected, len(vectors)
        # Fewer clients than configured may have finished.
        self.require_cohort(count)
        distances = squared_distances(vectors)
        np.fill_diagonal(distances, np.inf)
        scores = np.sort(distances, axis=1)[:, : count - f - 2].sum(axis=1)
        best = set(np.argsort(scores, kind="stable")[:selected].tolist())
        share = [1 / selected if i in best else 0.0 for i in range(count)]
        chosen = (vectors[i] for i in sorted(best))
        return Aggregated({"params": weighted_sum(chosen, [1 / selected] * selected)}, share)


def squared_distances(vectors: Sequence[FloatVector]) -> npt.NDArray[np.float64]:
    """Squared L2 distances (K, K) of K vectors (P,), computed a chunk of coordinates at a time."""
    count = len(vectors)
    total = np.zeros((count, count))
    for begin in range(0, vectors[0].size, CHUNK):
        parts = [vector[begin : begin + CHUNK] for vector in vectors]
        for i in range(count):
            for j in range(i):
                difference = parts[i] - parts[j]
                total[i, j] += np.dot(difference, difference)
    return total + total.T
