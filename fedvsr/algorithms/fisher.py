"""Fisher merging: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2022."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg, LocalRound
from fedvsr.messages import Round, Vectors
from fedvsr.params import weighted_sums


class Config(AlgorithmConfig):
    """Averaging by how much each parameter mattered to each client."""

    name: Literal["fisher"] = "fisher"
    floor: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Added to a client's Fisher information, as part of its mean: parameters that "
        "mattered to nobody are averaged plainly.",
    )


class Algorithm(FedAvg):
    """`w_j <- sum_k p_k F_kj w_kj / sum_k p_k F_kj` in every parameter j (Eq. 3).

    F_k is the diagonal of client k's empirical Fisher information: the mean square of its batch
    gradients over the last local epoch. Squares of batch gradients stand for those of single
    samples, which would cost a backward pass each; a larger batch makes them smaller alike.
    """

    source = "Matena and Raffel, NeurIPS 2022"
    extra_compute = "one sum of squared gradients a step of the last epoch"
    upload = ("params", "fisher")

    @property
    def corrects_gradients(self) -> bool:
        """It reads them."""
        return True

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Gather the squares of the last epoch, before any other term."""
        if step >= local.num_steps - local.steps_per_epoch:
            pairs = [
                (square, p.grad)
                for square, p in zip(local.sum("square"), local.params, strict=True)
                if p.grad is not None
            ]
            squares, grads = (list(column) for column in zip(*pairs, strict=True))
            torch._foreach_addcmul_(squares, grads, grads)
        return super().correct_gradients(local, step)

    def finish(self, local: LocalRound) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """The mean of the squares."""
        gathered = min(local.num_steps, local.steps_per_epoch)
        return {"fisher": list(torch._foreach_div(local.sum("square"), float(gathered)))}, {}

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """Every parameter has shares of its own, so clients have none."""
        sums = weighted_sums(
            (self._precise(upload) for upload in uploads), {"scaled": weights, "fisher": weights}
        )
        return Aggregated({"params": sums["scaled"] / sums["fisher"]}, None)

    def _precise(self, upload: Vectors) -> Vectors:
        fisher = upload["fisher"]
        # A client whose gradients all vanished counts as one to whom everything mattered alike.
        mean = float(fisher.mean(dtype=np.float64)) or 1.0
        raised = fisher + np.float32(self.config.floor * mean)
        return {"scaled": raised * upload["params"], "fisher": raised}
