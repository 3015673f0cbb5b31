"""The hooks of a federated algorithm, with FedAvg's answer to each, and the settings of all.

P is the number of parameters. B clips, T frames, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.losses import Reduction, high_frequency
from fedvsr.messages import ClientReport, Round, Vectors
from fedvsr.params import FloatVector, weighted_sum
from fedvsr.section import NamedSection
from fedvsr.wavelets import filters

KEPT_BY_TRAINER = ("params", "moments", "residual")
"""Names in a client's state that the trainer fills: its last parameters, what its optimiser keeps
(of another length), and what compression left out of its updates."""

# Below this Hellinger distance the published implementation averages plainly.
_HELLINGER_THRESHOLD = 0.05


class AlgorithmConfig(NamedSection):
    """What every algorithm can be combined with: a local loss, weights, a proximal term.

    A method that leaves no choice narrows a field's type; one that makes another choice changes its
    default.
    """

    lambda_vsr: float = Field(1.0, ge=0, le=100, description="Weight of the network's own loss.")
    lambda_hifr: float = Field(0.0, ge=0, le=100, description="Weight of the wavelet detail loss.")
    dwt: Literal["2d", "3d"] = Field(
        "2d", description="Transform each frame (the paper) or space and time together (its code)."
    )
    wavelet: str = Field("haar", description="Any orthogonal wavelet of PyWavelets.")
    reduction: Reduction = Field(
        "mean", description="Over the detail coefficients: mean, or the sum that Eq. 10 writes."
    )
    weights: Literal["samples", "uniform", "loss_aware"] = Field(
        "samples", description="Of the round's clients: by samples, alike, or FedVSR's by loss."
    )
    alpha: float = Field(
        1.0, gt=0, le=100, description="loss_aware: exponent of 1 / loss before any decay."
    )
    decay: Literal["linear", "power", "none"] = Field(
        "linear",
        description="loss_aware: exponent in round t of T: alpha * (1 - t/T), which ends in plain "
        "averaging as the paper's prose says; alpha ** (1 - t/T), the formula it prints; or alpha "
        "throughout.",
    )
    mixing: Literal["none", "hellinger"] = Field(
        "none",
        description="loss_aware: mix with uniform weights by Hellinger distance, as the paper's "
        "code does.",
    )
    mu: float = Field(0.0, ge=0, le=1000, description="FedProx's pull to the global network.")

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        filters(self.wavelet)
        if self.lambda_vsr == self.lambda_hifr == 0:
            raise UserError("lambda_vsr and lambda_hifr are both 0: there is nothing to minimise")

    def notes(self) -> tuple[str, ...]:
        """What a person who starts a run should know of these settings."""
        if self.mu > 1e-2:
            return (
                f"algorithm.mu = {self.mu:g} is large: the FedVSR paper finds that "
                "super-resolution hardly learns above 1e-3",
            )
        return ()


@dataclass(frozen=True)
class Batch:
    """One step's batch, after the network's forward pass."""

    vsr_loss: Tensor
    """L_VSR, a scalar."""
    sr: Tensor
    """Prediction (B, T, 3, H, W), in [0, 1] up to over- and undershoot."""
    gt: Tensor
    """Ground truth (B, T, 3, H, W)."""
    features: Mapping[str, Tensor] = field(default_factory=dict)
    """Where the algorithm contrasts them and the client has trained before: (B * T, C, h, w) by
    network, `local`, `global` and `previous`, the client's last."""


@dataclass(frozen=True)
class LocalRound:
    """One client's training in one round. Lists hold a tensor per parameter, on its device."""

    params: list[Tensor]
    """The client's parameters, which the optimiser changes."""
    shared: dict[str, list[Tensor]]
    """What the server sent; `params` are the global parameters."""
    state: dict[str, list[Tensor]]
    """What the client remembers of its last round; empty in its first."""
    sums: dict[str, list[Tensor]]
    """What the hooks gather over the steps; they start it."""
    num_steps: int
    """Steps that the round will take."""
    steps_per_epoch: int

    def sum(self, name: str) -> list[Tensor]:
        """A sum that starts at zero."""
        if name not in self.sums:
            self.sums[name] = [torch.zeros_like(p) for p in self.params]
        return self.sums[name]


class Aggregated(NamedTuple):
    """What the server made of a round's updates."""

    vectors: Vectors
    """By the names of the uploads."""
    weights: Sequence[float] | None
    """Each client's share; None where a method gives none."""


class FedAvg:
    """Federated averaging (McMahan et al. 2017, Algorithm 1): weights n_k / n by samples."""

    source: ClassVar[str]
    """Where the method is published."""
    extra_compute: ClassVar[str] = "none"
    """What a client computes beyond FedAvg, in words."""
    broadcast: ClassVar[tuple[str, ...]] = ("params",)
    """Server vectors that go to every client of a round."""
    upload: ClassVar[tuple[str, ...]] = ("params",)
    """Vectors that every client sends."""
    client_state: ClassVar[tuple[str, ...]] = ()
    """Vectors that a client remembers."""
    server_state: ClassVar[tuple[str, ...]] = ()
    """Vectors that the server keeps besides the parameters; they start at `initial`."""
    contrasts: ClassVar[bool] = False
    """Whether the loss compares features of networks; asks for `params` in `client_state`."""
    personal: ClassVar[bool] = False
    """Whether each client keeps a network of its own, which is what is scored."""
    pooled: ClassVar[bool] = False
    """Whether one client holds the clips of all and takes the steps of a whole cohort."""

    def __init__(self, config: Any) -> None:
        self.config = config

    # On a client.

    def local_loss(self, batch: Batch) -> Tensor:
        """The loss that a client minimises: Eq. 11 of FedVSR, whose second weight may be 0."""
        c = self.config
        loss: Tensor = batch.vsr_loss if c.lambda_vsr == 1 else c.lambda_vsr * batch.vsr_loss
        if c.lambda_hifr == 0:
            return loss
        detail = high_frequency(batch.sr, batch.gt, c.dwt, c.wavelet, reduction=c.reduction)
        both: Tensor = loss + c.lambda_hifr * detail
        return both

    @property
    def corrects_gradients(self) -> bool:
        """Whether `correct_gradients` does anything."""
        return bool(self.config.mu > 0)

    @property
    def wants_first_gradient(self) -> bool:
        """Whether `finish` needs the sum `first_gradient`: the mean gradient before any step."""
        return False

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Change the gradients of `local.params` in place, before step number `step` from 0.

        The base adds FedProx's `mu (w - w_t)`, exactly, whatever the optimiser.

        Returns:
            What the terms add to the loss.
        """
        mu = self.config.mu
        if mu == 0:
            return 0.0
        learning = [
            (p.grad, p.detach(), g)
            for p, g in zip(local.params, local.shared["params"], strict=True)
            if p.grad is not None
        ]
        grads, params, anchors = (list(column) for column in zip(*learning, strict=True))
        apart = torch._foreach_sub(params, anchors)
        torch._foreach_add_(grads, apart, alpha=mu)
        norms = torch.stack(torch._foreach_norm(apart)).double()
        return float(0.5 * mu * norms.square().sum().item())

    def finish(self, local: LocalRound) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """After the last step: what to send besides the parameters, and what to remember."""
        return {}, {}

    # On the server.

    def initial(self, name: str) -> float:
        """Every value of a vector of `server_state` before the first round."""
        return 0.0

    def require_cohort(self, count: int) -> None:
        """Check that rounds of `count` clients are enough.

        Raises:
            UserError: they are not.
        """

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """Aggregation weights of a round's clients, in the order of `reports`.

        They need not sum to 1: the rest is the global network's own share.
        """
        kind = self.config.weights
        if kind == "uniform":
            return [1 / len(reports)] * len(reports)
        if kind == "samples":
            total = sum(report.num_samples for report in reports)
            return [report.num_samples / total for report in reports]
        return self._loss_aware(reports, num_rounds)

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """Fold a round's uploads into one, in sampled order.

        `uploads` fetches one client's vectors at a time; whoever reads it once holds one's.
        """
        total = weighted_sum((upload["params"] for upload in uploads), weights)
        rest = 1 - math.fsum(weights)
        # A rest of rounding alone is none.
        if abs(rest) > 1e-9:
            total = total + np.float32(rest) * server["params"]
        return Aggregated({"params": total}, weights)

    def server_step(self, server: Vectors, aggregated: Vectors, this: Round) -> Vectors:
        """The server's next vectors, `params` and `server_state`."""
        return {**server, "params": aggregated["params"]}

    # FedVSR's weights, for every algorithm.

    def _loss_aware(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`I_i^a / sum_j I_j^a` with `I_i = 1 / L_i`, mixed with uniform weights if so set."""
        exponent = self.exponent(reports[0].round_idx, num_rounds)
        # In logarithms: no overflow for small losses and large exponents.
        logs = [-exponent * math.log(report.loss) for report in reports]
        powers = [math.exp(log - max(logs)) for log in logs]
        weights = [power / sum(powers) for power in powers]
        return mix_by_hellinger(weights) if self.config.mixing == "hellinger" else weights

    def exponent(self, round_idx: int, num_rounds: int) -> float:
        """The exponent a in round t = `round_idx` (1 to T) of T = `num_rounds`."""
        c, left = self.config, 1 - round_idx / num_rounds
        alpha = float(c.alpha)
        if c.decay == "linear":
            return alpha * left
        return float(alpha**left) if c.decay == "power" else alpha


def start(algorithm: FedAvg, params: FloatVector) -> Vectors:
    """The server's vectors before the first round: parameters (P,), and what it keeps (P,)."""
    kept = {n: np.full_like(params, algorithm.initial(n)) for n in algorithm.server_state}
    return {"params": params} | kept


def mix_by_hellinger(weights: Sequence[float]) -> list[float]:
    """Mix weights p with uniform ones u: `(1 - m) u + m p`.

    `m = max(0, h - 0.05) / 0.95` with h the Hellinger distance of p and u. Not in the paper: from
    its published implementation. Below a relative spread of about 14 % it is the plain mean.
    """
    uniform = 1 / len(weights)
    squares = sum((math.sqrt(uniform) - math.sqrt(p)) ** 2 for p in weights)
    distance = math.sqrt(0.5 * squares)
    share = max(0.0, distance - _HELLINGER_THRESHOLD) / (1 - _HELLINGER_THRESHOLD)
    return [(1 - share) * uniform + share * p for p in weights]
