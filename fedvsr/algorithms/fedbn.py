"""FedBN: Li et al., Federated Learning on Non-IID Features via Local Batch Normalization, 2021."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms._kept import KeptConfig
from fedvsr.algorithms.base import FedAvg


class Config(KeptConfig):
    """FedBN, for networks that have a part `norm`: VRT, RVRT and IART."""

    name: Literal["fedbn"] = "fedbn"
    keep: tuple[str, ...] = Field(
        ("norm",),
        description="Parts of the network that stay with each client (`fedvsr models --parts` "
        "lists them); the others are averaged.",
    )


class Algorithm(FedAvg):
    """All is averaged but the normalisation layers, which stay with each client (Algorithm 1).

    The paper is about batch normalisation, whose means and variances are those of a client's data.
    The networks here have layer normalisation, which has none: what stays are scales and shifts.
    """

    source = "Li et al., ICLR 2021"
