"""SCAFFOLD: Karimireddy et al., Stochastic Controlled Averaging, ICML 2020."""

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
    """SCAFFOLD. Both options for the control variates hold for every optimiser."""

    name: Literal["scaffold"] = "scaffold"
    weights: Literal["samples", "uniform", "loss_aware"] = Field(
        "uniform", description="Of the round's clients; Algorithm 1 takes them alike."
    )
    option: Literal[1, 2] = Field(
        2,
        description="Of Algorithm 1, line 12: 1 takes the gradient at the global network, by "
        "another pass over the round's batches, which doubles the work; 2 uses those of the steps.",
    )
    server_lr: float = Field(1.0, gt=0, le=10, description="The server's step size, eta_g.")


class Algorithm(FedAvg):
    """Local steps along `g - c_i + c`; control variates c_i per client and c at the server.

    Option II: after its K steps a client's `c_i` is the mean of its own gradients, uncorrected. For
    SGD that is the paper's `c_i - c + (x - y_i) / (K eta_l)`, and it stays a gradient where a step
    is none: under momentum or Adam, whose update follows the corrected gradient. Option I: `c_i` is
    the gradient at x over the batches that the client trains on. The server moves by
    `eta_g` times the mean difference, and c by |S| / N times the mean change of c_i. All control
    variates start at zero.
    """

    source = "Karimireddy et al., ICML 2020"
    extra_compute = "three sums of gradients a step; option 1: twice the passes"
    broadcast = ("params", "control")
    upload = ("params", "control_change")
    client_state = ("control",)
    server_state = ("control",)

    @property
    def corrects_gradients(self) -> bool:
        """Always."""
        return True

    @property
    def wants_first_gradient(self) -> bool:
        """Option I."""
        return bool(self.config.option == 1)

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Gather the gradient, then add `c - c_i` to it."""
        index = [i for i, p in enumerate(local.params) if p.grad is not None]
        grads = [g for p in local.params if (g := p.grad) is not None]
        if not self.wants_first_gradient:
            gathered = local.sum("gradient")
            torch._foreach_add_([gathered[i] for i in index], grads)
        torch._foreach_add_(grads, [local.shared["control"][i] for i in index])
        if local.state:
            torch._foreach_sub_(grads, [local.state["control"][i] for i in index])
        return super().correct_gradients(local, step)

    def finish(self, local: LocalRound) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """`c_i`, and its change for the server."""
        if self.wants_first_gradient:
            control = local.sum("first_gradient")
        else:
            control = list(torch._foreach_div(local.sum("gradient"), float(local.num_steps)))
        before = local.state.get("control")
        change = torch._foreach_sub(control, before) if before else control
        return {"control_change": list(change)}, {"control": control}

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """The weighted mean of parameters, and the plain mean of the changes."""
        alike = [1 / len(weights)] * len(weights)
        return Aggregated(
            weighted_sums(uploads, {"params": weights, "control_change": alike}), weights
        )

    def server_step(self, server: Vectors, aggregated: Vectors, this: Round) -> Vectors:
        """Algorithm 1, lines 16 and 17."""
        delta = aggregated["params"] - server["params"]
        share = np.float32(this.num_sampled / this.num_clients)
        return {
            "params": server["params"] + np.float32(self.config.server_lr) * delta,
            "control": server["control"] + share * aggregated["control_change"],
        }
