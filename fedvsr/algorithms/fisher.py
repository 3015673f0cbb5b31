"""Fisher merging: Matena and Raffel, Merging Models with Fisher-Weighted Averaging, 2022."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg, LocalRound
from fedvsr.messages import Round, Vectors
from fedvsr.params import weighted_sums

if TYPE_CHECKING:
    from torch import Tensor


class Config(AlgorithmConfig):
    """Averaging by how much each parameter mattered to each client."""

    name: Literal["fisher"] = "fisher"
    floor: float = Field(
        0.01,
        gt=0,
        le=1,
        description="Part of a client's mean Fisher information that is added to every value, so "
        "that parameters which mattered to no client are averaged plainly.",
    )


class Algorithm(FedAvg):
    """`w_j <- sum_k p_k F_kj w_kj / sum_k p_k F_kj` in every parameter j (Eq. 3).

    F_k is the diagonal of client k's empirical Fisher information: the mean square of its batch
    gradients over the last local epoch. Batch gradients replace those of single samples, which
    would need a backward pass each; a larger batch makes all squares smaller alike.
    """

    source = "Matena and Raffel, NeurIPS 2022"
    extra_compute = "one sum of squared gradients a step of the last epoch"
    upload = ("params", "fisher")

    config: Config

    @property
    def corrects_gradients(self) -> bool:
        """True: the hook reads the gradients."""
        return True

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """In the last epoch, add up the squared gradients before any other term."""
        import torch

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
        """Send the mean of the squares."""
        import torch

        num_summed = min(local.num_steps, local.steps_per_epoch)
        return {"fisher": list(torch._foreach_div(local.sum("square"), float(num_summed)))}, {}

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """The weighted mean of each parameter. Shares differ by parameter, so clients have none."""
        sums = weighted_sums(
            (self._scaled(upload) for upload in uploads), {"scaled": weights, "fisher": weights}
        )
        return Aggregated({"params": sums["scaled"] / sums["fisher"]}, None)

    def _scaled(self, upload: Vectors) -> Vectors:
        """A client's Fisher information, raised by the floor, and its parameters times that."""
        fisher = upload["fisher"]
        # If all its gradients vanished, every parameter counts the same.
        mean = float(fisher.mean(dtype=np.float64)) or 1.0
        raised = fisher + np.float32(self.config.floor * mean)
        return {"scaled": raised * upload["params"], "fisher": raised}
