"""Settings of the methods that leave a part of the network with each client."""

from __future__ import annotations

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig
from fedvsr.errors import UserError


class KeptConfig(AlgorithmConfig):
    """A part of the network stays with each client; which one, is the method's choice or yours."""

    ignored = ("share",)

    keep: tuple[str, ...] = Field(
        ("head",),
        description="Parts of the network that stay with each client (`fedvsr models --parts` "
        "lists them); the others are averaged.",
    )

    def model_post_init(self, context: object) -> None:
        """Check that the choice makes the method: something stays with a client."""
        if self.share or not self.keep:
            raise UserError(
                f"algorithm.name = {self.name} leaves with clients the parts that algorithm.keep "
                f"names: give it {'instead of algorithm.share' if self.share else 'a part'}, e.g. "
                "algorithm.keep=[head], or take algorithm.name=fedavg"
            )
        super().model_post_init(context)
