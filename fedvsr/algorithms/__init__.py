"""The federated algorithms, one a file: the file's name is the configuration's `algorithm.name`.

A file holds `Config`, a section, and `Algorithm`, mathematics on values: no Ray, no files, nothing
kept between calls. Hooks default to FedAvg, so a method shows only its difference.
"""

from __future__ import annotations

from fedvsr.algorithms._base import FedAvg
from fedvsr.lookup import load
from fedvsr.section import NamedSection


def build(config: NamedSection) -> FedAvg:
    """The algorithm that a section of `algorithms/<name>.py` configures."""
    algorithm: FedAvg = load(__name__, config.name).Algorithm(config)
    return algorithm
