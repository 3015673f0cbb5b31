"""FedRep: Collins et al., Exploiting Shared Representations for Personalized FL, ICML 2021."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedvsr.algorithms._kept import KeptConfig
from fedvsr.algorithms.base import FedAvg
from fedvsr.layout import Role


class Config(KeptConfig):
    """FedRep. The paper calls what is averaged the representation."""

    name: Literal["fedrep"] = "fedrep"
    head_share: float = Field(
        0.67,
        gt=0,
        lt=1,
        description="Share of a round's steps that train the head. The paper takes ten epochs for "
        "the head and then five for the base (0.67), or one for the base (0.91).",
    )


class Algorithm(FedAvg):
    """A client trains first its head with the base frozen, then the base with the head frozen.

    The base is averaged and the head stays with the client (Algorithm 1). The steps of both are
    those of a round together, so a round costs no more than FedAvg's. Each gets a step at least; in
    rounds of a single step both learn at once.
    """

    source = "Collins et al., ICML 2021"

    config: Config

    def learning(self, step: int, num_steps: int) -> tuple[Role, ...]:
        """The head, and then the base."""
        if num_steps == 1:
            return ("shared", "own")
        head_steps = min(max(1, round(self.config.head_share * num_steps)), num_steps - 1)
        return ("own",) if step < head_steps else ("shared",)
