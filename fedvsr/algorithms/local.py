"""Training of each client alone: the lower bound that federated training must beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors


class Config(AlgorithmConfig):
    """Local training without aggregation."""

    ignored = ("weights", "share", "keep")

    name: Literal["local"] = "local"


class Algorithm(FedAvg):
    """Each client continues from its own last network and sends nothing.

    All start from the same network, and train in the rounds in which they are sampled, so that a
    client does as much work as in federated training. The score is the mean over the networks of
    all clients.
    """

    source = "baseline"
    upload = ()
    client_state = ("params",)
    own_network = "params"

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """Keep the global network: nothing is sent."""
        return Aggregated({"params": server["params"]}, None)
