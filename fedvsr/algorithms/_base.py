"""The hooks of a federated algorithm, with FedAvg's answer to each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from torch import Tensor

from fedvsr.messages import ClientReport
from fedvsr.params import FloatVector, weighted_sum
from fedvsr.section import NamedSection


class FedAvg:
    """Federated averaging (McMahan et al. 2017, Algorithm 1): weights n_k / n by samples."""

    def __init__(self, config: NamedSection) -> None:
        self.config = config

    def local_loss(self, vsr_loss: Tensor, sr_BTCHW: Tensor, gt_BTCHW: Tensor) -> Tensor:
        """The loss that a client minimises, from the network's own term L_VSR.

        Args:
            vsr_loss: L_VSR of this batch, a scalar.
            sr_BTCHW: prediction, in [0, 1] up to over- and undershoot.
            gt_BTCHW: ground truth in [0, 1].
        """
        return vsr_loss

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """Aggregation weights of a round's clients, in the order of `reports`, summing to 1."""
        total = sum(report.num_samples for report in reports)
        return [report.num_samples / total for report in reports]

    def aggregate(self, updates: Iterable[FloatVector], weights: Sequence[float]) -> FloatVector:
        """The next global parameters (P,), from the clients' parameters in sampled order.

        `updates` fetches one vector at a time; whoever reads it once holds one.
        """
        return weighted_sum(updates, weights)
