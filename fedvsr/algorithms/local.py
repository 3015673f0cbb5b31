"""Each client alone: the lower bound that federated training must beat."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors


class Config(AlgorithmConfig):
    """No aggregation."""

    name: Literal["local"] = "local"


class Algorithm(FedAvg):
    """A client goes on from its own last network; nothing leaves it.

    All start from the same network and train in the rounds in which they are drawn, so that a
    client does the work that it would do in federated training. The score is a mean over all
    clients' networks.
    """

    source = "baseline"
    upload = ()
    client_state = ("params",)
    personal = True

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """Keep the server's network: nothing is sent."""
        return Aggregated({"params": server["params"]}, None)
