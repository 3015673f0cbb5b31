"""MOON: Li et al., Model-Contrastive Federated Learning, CVPR 2021."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, Batch, FedAvg
from fedvsr.section import OnlyWith

if TYPE_CHECKING:
    from torch import Tensor


class Config(AlgorithmConfig):
    """MOON. The paper calls the contrast's weight mu, which here is FedProx's."""

    name: Literal["moon"] = "moon"
    lambda_con: float = Field(
        0.01,
        ge=0,
        le=100,
        description="Weight of the contrast, the paper's mu; its classifiers need 1 and more.",
    )
    temperature: Annotated[float, OnlyWith("lambda_con", above=0)] = Field(
        0.5, gt=0, le=100, description="Temperature tau of the contrast."
    )


class Algorithm(FedAvg):
    """Adds `-log(e^a / (e^a + e^b))`, `a = s(z, z_glob) / tau`, `b = s(z, z_prev) / tau`.

    Eqs. 3 and 4, a mean over frames; s is the cosine. z, z_glob and z_prev are a frame's features
    in the client's network, in the global network and in the client's last network: what a network
    declares as `ModelSpec.features`, averaged over the frame. The paper's projection head is left
    out, because super-resolution has no use for its parameters. A client's first round has no
    contrast: in the paper its last network is then the global one, and the term is constant.
    """

    source = "Li et al., CVPR 2021"
    extra_compute = "two forward passes a step; two more networks in memory"
    client_state = ("params",)
    contrasts = True

    config: Config

    def local_loss(self, batch: Batch) -> Tensor:
        """FedAvg's loss plus the contrast (Eq. 5)."""
        loss = super().local_loss(batch)
        if not batch.features:
            return loss
        from fedvsr.losses import contrast

        z = {name: f.mean(dim=(2, 3)) for name, f in batch.features.items()}
        pulled = contrast(z["local"], z["global"], z["previous"], self.config.temperature)
        return loss + self.config.lambda_con * pulled
