"""Ditto: Li et al., Fair and Robust Federated Learning Through Personalization, ICML 2021."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms._pull import pull
from fedvsr.algorithms.base import AlgorithmConfig, FedAvg, LocalRound


class Config(AlgorithmConfig):
    """Ditto. A client's network is its own as a whole, so there is no choice of parts."""

    ignored = ("share", "keep")

    name: Literal["ditto"] = "ditto"
    lambda_own: float = Field(
        0.1,
        ge=0,
        le=1000,
        description="Strength of the pull of a client's own network to the global one, the paper's "
        "lambda, which it tunes from 0.05 to 2. 0 trains each client alone.",
    )


class Algorithm(FedAvg):
    """FedAvg, and beside the global network w a network v of each client's own (Algorithm 1).

    v minimises the client's loss plus `lambda / 2 * |v - w_t|^2`, where w_t is the network that the
    client receives. It takes as many steps as w, on the same batches, with an optimiser of its own;
    what it gives stays with the client, which is scored with it. w has the bits of FedAvg. Before
    its first round a client has the global network.
    """

    source = "Li et al., ICML 2021"
    extra_compute = "twice the steps, half of them with one difference of parameters"
    client_state = ("personal",)
    own_network = "personal"
    trains_beside = True

    config: Config

    def correct_gradients(self, local: LocalRound, step: int) -> float:
        """Pull v to the global network."""
        if local.beside:
            return pull(local, self.config.lambda_own)
        return super().correct_gradients(local, step)
