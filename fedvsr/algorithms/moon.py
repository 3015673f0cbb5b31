"""MOON: Li et al., Model-Contrastive Federated Learning, CVPR 2021."""

from __future__ import annotations

from typing import Literal

from pydantic import Field
from torch import Tensor

from fedvsr.algorithms.base import AlgorithmConfig, Batch, FedAvg
from fedvsr.losses import contrast


class Config(AlgorithmConfig):
    """MOON. Its weight is the paper's mu, which FedProx's term has here."""

    name: Literal["moon"] = "moon"
    lambda_con: float = Field(
        0.01,
        ge=0,
        le=100,
        description="Weight of the contrast, MOON's mu; for classification, MOON takes 1 and more.",
    )
    temperature: float = Field(0.5, gt=0, le=100, description="Temperature tau of the contrast.")


class Algorithm(FedAvg):
    """Adds `-log(e^a / (e^a + e^b))`, `a = s(z, z_glob) / tau`, `b = s(z, z_prev) / tau`.

    Eqs. 3 and 4, a mean over frames; s is the cosine. z, z_glob and z_prev are what the client's
    network, the global one and the client's last see in a frame: the features that a network
    declares (`ModelSpec.features`), averaged over the frame. The paper's projection head is left
    out: it would be parameters that super-resolution does not use. A client's first round has no
    contrast: in the paper its last network is the global one, and the term a constant.
    """

    source = "Li et al., CVPR 2021"
    extra_compute = "two forward passes a step; two more networks in memory"
    client_state = ("params",)
    contrasts = True

    def local_loss(self, batch: Batch) -> Tensor:
        """Eq. 5."""
        loss = super().local_loss(batch)
        if not batch.features:
            return loss
        z = {name: f.mean(dim=(2, 3)) for name, f in batch.features.items()}
        pulled = contrast(z["local"], z["global"], z["previous"], self.config.temperature)
        both: Tensor = loss + self.config.lambda_con * pulled
        return both
