"""SCAFFOLD: Karimireddy et al., Stochastic Controlled Averaging, ICML 2020."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import (
    Aggregated,
    AlgorithmConfig,
    FedAvg,
    LocalRound,
    Weights,
    by_coordinate,
)
from fedvsr.messages import Round, Vectors
from fedvsr.params import weighted_sums

if TYPE_CHECKING:
    from torch import Tensor


class Config(AlgorithmConfig):
    """SCAFFOLD. Both options for the control variates work with every optimiser."""

    name: Literal["scaffold"] = "scaffold"
    weights: Weights = Field(
        "uniform",
        description="Aggregation weights of a round's clients: by their samples, uniform (as in "
        "Algorithm 1), or FedVSR's by their losses.",
    )
    option: Literal[1, 2] = Field(
        2,
        description="Control variates by Algorithm 1, line 12. 1: the gradient at the global "
        "network, by another pass over the round's batches, which doubles the work; 2: the mean "
        "gradient of the steps.",
    )
    server_lr: float = Field(1.0, gt=0, le=10, description="The server's step size, eta_g.")


class Algorithm(FedAvg):
    """Local steps along `g - c_i + c`; control variates c_i per client and c at the server.

    Option II: after its K steps, a client's `c_i` is the mean of its own uncorrected gradients. For
    SGD this is the paper's `c_i - c + (x - y_i) / (K eta_l)`. With momentum or Adam, whose steps
    are not gradients, it stays one; their update uses the corrected gradient. Option I: `c_i` is
    the gradient at x over the batches that the client trains on. The server moves by `eta_g` times
    the mean difference, and c by |S| / N times the mean change of c_i. All control variates start
    at zero.
    """

    source = "Karimireddy et al., ICML 2020"
    extra_compute = "three sums of gradients a step; option 1: twice the passes"
    broadcast = ("params", "control")
    upload = ("params", "control_change")
    client_state = ("control",)
    server_state = ("control",)

    config: Config

    @property
    def corrects_gradients(self) -> bool:
        """True: every step is corrected."""
        return True

    @property
    def wants_first_gradient(self) -> bool:
        """True for option I."""
        return self.config.option == 1

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Add the gradient to the sum of option II, then `c - c_i` to the gradient."""
        import torch

        index = [i for i, p in enumerate(local.params) if p.grad is not None]
        grads = [g for p in local.params if (g := p.grad) is not None]
        if not self.wants_first_gradient:
            total = local.sum("gradient")
            torch._foreach_add_([total[i] for i in index], grads)
        torch._foreach_add_(grads, [local.shared["control"][i] for i in index])
        if local.state:
            torch._foreach_sub_(grads, [local.state["control"][i] for i in index])
        return super().correct_gradients(local, step)

    def finish(self, local: LocalRound) -> tuple[dict[str, list[Tensor]], dict[str, list[Tensor]]]:
        """Send the change of `c_i`, and remember `c_i`."""
        import torch

        if self.wants_first_gradient:
            control = local.sum("first_gradient")
        else:
            control = list(torch._foreach_div(local.sum("gradient"), float(local.num_steps)))
        before = local.state.get("control")
        change = torch._foreach_sub(control, before) if before else control
        return {"control_change": list(change)}, {"control": control}

    @by_coordinate
    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """The weighted mean of parameters, and the uniform mean of the changes."""
        uniform = [1 / len(weights)] * len(weights)
        return Aggregated(
            weighted_sums(uploads, {"params": weights, "control_change": uniform}), weights
        )

    def server_step(self, server: Vectors, aggregated: Vectors, round_info: Round) -> Vectors:
        """Move parameters and c by Algorithm 1, lines 16 and 17."""
        delta = aggregated["params"] - server["params"]
        share = np.float32(round_info.num_sampled / round_info.num_clients)
        return {
            "params": server["params"] + np.float32(self.config.server_lr) * delta,
            "control": server["control"] + share * aggregated["control_change"],
        }
