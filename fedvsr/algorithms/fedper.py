"""FedPer: Arivazhagan et al., Federated Learning with Personalization Layers, 2019."""

from __future__ import annotations

from typing import Literal

from fedvsr.algorithms._kept import KeptConfig
from fedvsr.algorithms.base import FedAvg


class Config(KeptConfig):
    """FedPer. The paper keeps a network's last layers, here `head` or `decoder`."""

    name: Literal["fedper"] = "fedper"


class Algorithm(FedAvg):
    """The base is averaged, and the head stays with each client (Algorithms 1 and 2).

    A client trains both at once and uploads the base. It is scored with the base and its own head.
    """

    source = "Arivazhagan et al., arXiv 1912.00818"
