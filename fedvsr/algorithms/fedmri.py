"""FedMRI: Feng et al., Specificity-Preserving Federated Learning, IEEE TMI 2022.

The full title adds: for MR Image Reconstruction.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg, LocalRound, Weights
from fedvsr.messages import Round, Vectors

if TYPE_CHECKING:
    from torch import Tensor

# The paper's constant, which keeps the ratio finite for a client alone.
_EPSILON = 1e-14


class Config(AlgorithmConfig):
    """FedMRI. The paper averages encoders uniformly."""

    name: Literal["fedmri"] = "fedmri"
    weights: Weights = Field(
        "uniform",
        description="Aggregation weights of a round's clients: by their samples, uniform (as in "
        "the paper), or FedVSR's by their losses.",
    )
    share: tuple[str, ...] = Field(
        ("encoder",),
        description="Parts of the network that are averaged and contrasted; the others stay with "
        "each client (`fedvsr models --parts` lists them).",
    )
    beta: float = Field(
        1e-3,
        ge=0,
        le=1e4,
        description="Weight of the contrast of encoders; 0 leaves it out (published, with RMSprop: "
        "100, with which encoders hardly move here).",
    )

    def notes(self) -> tuple[str, ...]:
        """Remarks on these settings for the user who starts a run."""
        if not self.beta:
            return super().notes()
        return (
            *super().notes(),
            "algorithm.name = fedmri sends each client what every client of the last round has "
            "sent, one by one: use it only among clients that may see each other's updates",
        )


class Algorithm(FedAvg):
    """Averages the encoder alone, and pulls it to the server's rather than to the clients'.

    From the second round on, the loss has the term `beta R` with `R = |w - w_t|_1 / (sum_j
    |w - w_j|_1 + 1e-14)`: w is the client's encoder, w_t the server's, and w_j are those that the
    clients of the last round sent, the client's own included if it was one of them. The gradient,
    with `sign(0) = 0`, is added exactly, for every optimiser.

    The paper takes every client's last encoder. With cohorts, that would be one of any age for each
    client ever seen, so the last round's K are taken; if all clients train in every round, it is
    the same. They cost and reveal something: a client receives K encoders besides the server's, and
    what each other client has learnt, which the server's mean hides
    (`docs/explanation/privacy.md`). The server keeps all K. With `beta` 0, none is kept or sent.

    Departure: one published configuration has beta = 100, with RMSprop. Adam's steps depend on the
    terms' proportion alone, so that this weight lets the contrast decide where an encoder goes.
    """

    source = "Feng et al., TMI 2022"
    extra_compute = "K + 1 differences of the encoder a step"
    broadcast = ("params", "previous")
    server_state = ("previous",)
    cohort_state = ("previous",)

    config: Config

    @property
    def corrects_gradients(self) -> bool:
        """Whether there is a contrast or a proximal term."""
        return self.config.beta > 0 or super().corrects_gradients

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Add the gradient of `beta R`, from the second round on."""
        import torch

        penalty = super().correct_gradients(local, step)
        beta, previous = self.config.beta, local.shared["previous"]
        if beta == 0 or not len(previous[0]):
            return penalty
        params = [p.detach() for p in local.params]
        to_server = torch._foreach_sub(params, local.shared["params"])
        # The vectors of K clients lie along the first axis.
        to_each = [p - others for p, others in zip(params, previous, strict=True)]
        distance, total = _l1(list(to_server)), _l1(to_each)
        total += _EPSILON
        ratio = distance / total
        for p, of_server, of_each in zip(local.params, to_server, to_each, strict=True):
            if p.grad is not None:
                slope = of_server.sign().sub_(of_each.sign().sum(0), alpha=ratio)
                p.grad.add_(slope, alpha=beta / total)
        return penalty + beta * ratio

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """FedAvg's mean, and a copy of every upload for the next round's clients."""
        if self.config.beta == 0:
            return super().aggregate(uploads, weights, server, round_info)
        previous = np.empty((len(weights), server["params"].size), np.float32)
        rows = iter(previous)

        def copied(upload: Vectors) -> Vectors:
            next(rows)[:] = upload["params"]
            return upload

        mean = super().aggregate(map(copied, uploads), weights, server, round_info)
        return Aggregated({**mean.vectors, "previous": previous.ravel()}, mean.weights)

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """FedAvg's step; what the clients sent is kept for the contrast."""
        after = super().server_step(server, aggregated, round_info)
        return {**after, "previous": aggregated.get("previous", server["previous"])}


def _l1(parts: list[Tensor]) -> float:
    """The sum of all magnitudes."""
    import torch

    return float(torch.stack(torch._foreach_norm(parts, 1)).double().sum().item())
