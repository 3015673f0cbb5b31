"""The hooks of a federated algorithm, each with FedAvg's answer, and the settings of all methods.

P is the number of shared parameters: all, unless some are frozen or stay with their clients. B
clips, T frames, H x W pixels, values in [0, 1].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, NamedTuple, TypeVar

import numpy as np
from pydantic import Field

from fedvsr.algorithms._pull import pull
from fedvsr.errors import UserError
from fedvsr.hellinger import mix_by_hellinger
from fedvsr.layout import Role
from fedvsr.messages import ClientReport, Round, Vectors
from fedvsr.params import FloatVector, weighted_sum
from fedvsr.section import NamedSection, OnlyWith
from fedvsr.wavelets import filters

if TYPE_CHECKING:
    from torch import Tensor

KEPT_BY_TRAINER = ("params", "own", "moments", "residual")
"""Names in a client's state that the trainer fills: the client's last shared parameters, those that
stay with it and its optimiser's moments (vectors of other lengths), and what compression left out
of its updates."""

Weights = Literal["samples", "uniform", "loss_aware"]
Dwt = Annotated[Literal["2d", "3d"], OnlyWith("lambda_hifr", above=0)]
Decay = Annotated[Literal["linear", "power", "none"], OnlyWith("weights", "loss_aware")]
Mixing = Annotated[Literal["none", "hellinger"], OnlyWith("weights", "loss_aware")]


class AlgorithmConfig(NamedSection):
    """Settings of every algorithm: the local loss, aggregation weights, a proximal term.

    A method that leaves no choice narrows a field's type, one that ignores a field names it in
    `ignored`, and one that chooses differently changes the default.
    """

    lambda_vsr: float = Field(1.0, ge=0, le=100, description="Weight of the network's own loss.")
    lambda_hifr: float = Field(
        0.0, ge=0, le=100, description="Weight of the wavelet detail loss; 0 leaves it out."
    )
    dwt: Dwt = Field(
        "2d",
        description="Wavelet transform of each frame (2d, as in the preprint) or of space and time "
        "together (3d, as published).",
    )
    wavelet: Annotated[str, OnlyWith("lambda_hifr", above=0)] = Field(
        "haar", description="Wavelet of the detail loss: any orthogonal one of PyWavelets."
    )
    reduction: Annotated[Literal["mean", "sum"], OnlyWith("lambda_hifr", above=0)] = Field(
        "mean",
        description="How the detail loss combines coefficients: mean, or the sum of Eq. 10.",
    )
    weights: Weights = Field(
        "samples",
        description="Aggregation weights of a round's clients: by their samples, uniform, or "
        "FedVSR's by their losses.",
    )
    alpha: Annotated[float, OnlyWith("weights", "loss_aware")] = Field(
        1.0, gt=0, le=100, description="loss_aware: exponent of 1 / loss before any decay."
    )
    decay: Decay = Field(
        "linear",
        description="loss_aware: exponent in round t of T. linear: alpha * (1 - t/T), which ends "
        "in uniform averaging as the paper's text says; power: alpha ** (1 - t/T), the formula "
        "that it prints; none: alpha in every round.",
    )
    mixing: Mixing = Field(
        "none",
        description="loss_aware: mix with uniform weights by their Hellinger distance, as "
        "published; the preprint does not.",
    )
    mixing_threshold: Annotated[float, OnlyWith("mixing", "hellinger")] = Field(
        0.05,
        ge=0,
        lt=1,
        description="hellinger: distance up to which the weights become uniform (published: 0.05).",
    )
    mu: float = Field(
        0.0, ge=0, le=1000, description="Strength of FedProx's pull to the global network."
    )
    share: tuple[str, ...] = Field(
        (),
        description="Parts of the network that are averaged, e.g. [encoder]; the others stay with "
        "each client (default: all are averaged; `fedvsr models --parts` lists them).",
    )
    keep: tuple[str, ...] = Field(
        (),
        description="Parts of the network that stay with each client, e.g. [head]; the others are "
        "averaged. Give this or share.",
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        # Haar is known; PyWavelets takes a while to import.
        if self.wavelet != "haar":
            filters(self.wavelet)
        if self.lambda_vsr == self.lambda_hifr == 0:
            raise UserError(
                "lambda_vsr and lambda_hifr are both 0, which leaves nothing to minimise; raise one"
            )
        if self.share and self.keep:
            raise UserError(
                "algorithm.share and algorithm.keep both say which parts stay with a client; give "
                "one of them"
            )

    def notes(self) -> tuple[str, ...]:
        """Remarks on these settings for the user who starts a run."""
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
    """Features (B * T, C, h, w) of the networks `local`, `global` and `previous` (the client's
    last). Empty unless the algorithm contrasts them and the client has trained before."""


@dataclass(frozen=True)
class LocalRound:
    """One client's training in one round.

    Lists have a tensor per shared parameter, on its device: no hook sees those that stay with the
    client.
    """

    params: list[Tensor]
    """The client's version of the shared parameters, which the optimiser changes."""
    shared: dict[str, list[Tensor]]
    """The server's vectors by name; `params` are the global parameters. Those of
    `Algorithm.cohort_state` have the round's K clients as their first axis."""
    state: dict[str, list[Tensor]]
    """What the client remembers from its last round; empty in its first."""
    sums: dict[str, list[Tensor]]
    """Accumulators that the hooks fill over the steps; see `sum`."""
    num_steps: int
    """Steps that the round will take."""
    steps_per_epoch: int
    beside: bool = False
    """Whether this trains the client's own network beside the shared one; see `trains_beside`."""
    round_idx: int = 1
    """From 1."""

    def sum(self, name: str) -> list[Tensor]:
        """The named accumulator; zeros on first use."""
        import torch

        if name not in self.sums:
            self.sums[name] = [torch.zeros_like(p) for p in self.params]
        return self.sums[name]


class Aggregated(NamedTuple):
    """A round's updates, combined by the server."""

    vectors: Vectors
    """The combined vectors, by the names of the uploads."""
    weights: Sequence[float] | None
    """Each client's share; None if the method has no single share per client."""


Aggregate = TypeVar("Aggregate", bound=Callable[..., Aggregated])


def by_coordinate(aggregate: Aggregate) -> Aggregate:
    """Mark an `aggregate` that combines each coordinate independently of all others.

    Nodes may then each combine a slice of all vectors, with the same bits. Such a call gets slices
    as `uploads`, the slices of the vectors of `broadcast` alone as `server`, and no `tensors` in
    `round_info`. Its shares must not depend on the slice.

    The mark is the function's: a method that overrides `aggregate` has none unless it sets its own.
    """
    # The mark is the function's own, so that an override does not inherit it.
    aggregate.by_coordinate = True  # type: ignore[attr-defined]
    return aggregate


def is_by_coordinate(algorithm: FedAvg) -> bool:
    """Whether the algorithm's `aggregate` has the mark `by_coordinate`."""
    aggregate: Any = algorithm.aggregate
    return getattr(aggregate, "by_coordinate", False)


class FedAvg:
    """Federated averaging (McMahan et al. 2017, Algorithm 1): weights n_k / n by samples.

    An algorithm holds its settings only. A method with settings of its own declares
    `config: Config`.
    """

    source: ClassVar[str]
    """Where the method is published."""
    extra_compute: ClassVar[str] = "none"
    """What a client computes beyond FedAvg, in words."""
    broadcast: ClassVar[tuple[str, ...]] = ("params",)
    """Server vectors sent to every client of a round."""
    upload: ClassVar[tuple[str, ...]] = ("params",)
    """Vectors that every client sends."""
    client_state: ClassVar[tuple[str, ...]] = ()
    """Vectors that a client remembers."""
    server_state: ClassVar[tuple[str, ...]] = ()
    """Vectors that the server keeps besides the parameters; they start at `initial`."""
    cohort_state: ClassVar[tuple[str, ...]] = ()
    """Those of `server_state` that hold a vector of each of the last round's K clients, one after
    the other, (K * P,). They start empty, and `LocalRound.shared` has them as tensors with K in
    front."""
    contrasts: ClassVar[bool] = False
    """Whether the loss compares features of networks; this needs `params` in `client_state`."""
    own_network: ClassVar[str | None] = None
    """The vector of `client_state` that is a client's own version of the shared parameters, with
    which it is scored; None: clients are scored with the server's."""
    trains_beside: ClassVar[bool] = False
    """Whether `own_network` is trained beside the shared one, in as many steps on the same batches;
    else it is what the client trains and sends."""
    counts_labels: ClassVar[bool] = False
    """Whether clients report how many of their clips have each label."""
    learns_prompts: ClassVar[bool] = False
    """Whether it is for the prompts of `model.adapter` alone."""
    corrects_steps: ClassVar[bool] = False
    """Whether `correct_step` does anything."""
    pooled: ClassVar[bool] = False
    """Whether one client holds the clips of all and takes the steps of a whole cohort."""

    config: AlgorithmConfig

    def __init__(self, config: AlgorithmConfig) -> None:
        self.config = config

    @property
    def personal(self) -> bool:
        """Whether each client has a network of its own, which is then what is scored."""
        return bool(self.own_network or self.config.share or self.config.keep)

    # On a client.

    def learning(self, step: int, num_steps: int) -> tuple[Role, ...]:
        """The parameters that step `step` (from 0) of a round's `num_steps` changes."""
        return ("shared", "own")

    def local_loss(self, batch: Batch) -> Tensor:
        """The loss that a client minimises: Eq. 11 of FedVSR, whose second weight may be 0."""
        c = self.config
        loss = batch.vsr_loss if c.lambda_vsr == 1 else c.lambda_vsr * batch.vsr_loss
        if c.lambda_hifr == 0:
            return loss
        from fedvsr.losses import high_frequency

        detail = high_frequency(batch.sr, batch.gt, c.dwt, c.wavelet, reduction=c.reduction)
        return loss + c.lambda_hifr * detail

    @property
    def corrects_gradients(self) -> bool:
        """Whether `correct_gradients` does anything."""
        return self.config.mu > 0

    @property
    def wants_first_gradient(self) -> bool:
        """Whether `finish` needs the sum `first_gradient`: the mean gradient before any step."""
        return False

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Change the gradients of `local.params` in place before optimiser step `step` (from 0).

        FedAvg adds `mu (w - w_t)`, the gradient of FedProx's term.

        Returns:
            What the added terms contribute to the loss.
        """
        return pull(local, self.config.mu)

    def correct_step(self, local: LocalRound, before: Sequence[Tensor]) -> None:
        """Change `local.params` in place after an optimiser step; called without gradients.

        Args:
            local: the round.
            before: copies of `local.params` from before the step.
        """

    def finish(self, local: LocalRound) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """After the last step: what to send besides the parameters, and what to remember."""
        return {}, {}

    # On the server.

    def initial(self, name: str) -> float:
        """The value with which a vector of `server_state` is filled before the first round."""
        return 0.0

    def require_cohort(self, count: int) -> None:
        """Check that rounds of `count` clients are large enough.

        Raises:
            UserError: they are too small.
        """

    def weights(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """Aggregation weights of a round's clients, in the order of `reports`.

        Their sum may be below 1: the global network gets the rest.
        """
        kind = self.config.weights
        if kind == "uniform":
            return [1 / len(reports)] * len(reports)
        if kind == "samples":
            total = sum(report.num_samples for report in reports)
            return [report.num_samples / total for report in reports]
        return self._loss_aware(reports, num_rounds)

    @by_coordinate
    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """Combine a round's uploads, in sampled order.

        `uploads` unpacks one client's vectors at a time, so a single pass needs memory for one.
        """
        total = weighted_sum(map(itemgetter("params"), uploads), weights)
        rest = 1 - math.fsum(weights)
        # Smaller rests are rounding errors of weights that sum to 1.
        if abs(rest) > 1e-9:
            total = total + np.float32(rest) * server["params"]
        return Aggregated({"params": total}, weights)

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """The server's next vectors: `params` and those of `server_state`."""
        return {**server, "params": aggregated["params"]}

    # FedVSR's weights, for every algorithm.

    def _loss_aware(self, reports: Sequence[ClientReport], num_rounds: int) -> list[float]:
        """`I_i^a / sum_j I_j^a` with `I_i = 1 / L_i`, mixed with uniform weights on request."""
        exponent = self.exponent(reports[0].round_idx, num_rounds)
        # In logarithms, so that small losses and large exponents do not overflow.
        logs = [-exponent * math.log(report.loss) for report in reports]
        powers = [math.exp(log - max(logs)) for log in logs]
        weights = [power / sum(powers) for power in powers]
        if self.config.mixing == "none":
            return weights
        return mix_by_hellinger(weights, self.config.mixing_threshold)

    def exponent(self, round_idx: int, num_rounds: int) -> float:
        """The exponent a in round t = `round_idx` (1 to T) of T = `num_rounds`."""
        alpha, decay = self.config.alpha, self.config.decay
        remaining = 1 - round_idx / num_rounds
        if decay == "linear":
            return alpha * remaining
        return float(alpha**remaining) if decay == "power" else alpha


def start(algorithm: FedAvg, params: FloatVector) -> Vectors:
    """The server's vectors (P,) before the first round: `params`, and those of `server_state`."""
    kept = {n: np.full_like(params, algorithm.initial(n)) for n in algorithm.server_state}
    empty = {n: np.empty(0, np.float32) for n in algorithm.cohort_state}
    return {"params": params} | kept | empty
