"""FedSR: Yang, Ren and Ke, Knowledge-Based Systems 309, 2025.

Federated learning for image super-resolution. Only its outline is public: clients align features by
a detail-assisted contrastive loss, and the server aggregates layer by layer with regard to the past
global model. The FedVSR authors' published comparison shows some of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, Batch, FedAvg
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector
from fedvsr.section import OnlyWith
from fedvsr.wavelets import detail_bands

if TYPE_CHECKING:
    from torch import Tensor


class Config(AlgorithmConfig):
    """FedSR, as read from its outline and FedVSR's published comparison with it."""

    name: Literal["fedsr"] = "fedsr"
    wavelet: str = Field(
        "haar",
        description="Wavelet of the detail in the contrast, and of the detail loss: any orthogonal "
        "one of PyWavelets.",
    )
    lambda_con: float = Field(0.1, ge=0, le=100, description="Weight of the contrast.")
    temperature: Annotated[float, OnlyWith("lambda_con", above=0)] = Field(
        0.07, gt=0, le=100, description="Temperature tau of the contrast."
    )


class Algorithm(FedAvg):
    """MOON's contrast where frames have detail; tensors weighed by their similarity to the past.

    Loss: as in `moon`, but features are averaged over a frame with the strength of the ground
    truth's detail as weights (the root of the energy of its bands LH, HL and HH, at the features'
    size), so that flat regions, which look the same to all networks, hardly count. This is our
    reading of "detail-assisted"; FedVSR's published comparison weighs all pixels alike, and adds a
    head that never learns.

    Server, as in that comparison: FedAvg in the first round; later, client k has the weight
    `softmax_k(cos(w_k^l, w_t^l))` in every parameter tensor l, where w_t is the past global
    network.
    """

    source = "Yang et al., KBS 2025 (outline)"
    extra_compute = "two forward passes a step; two more networks in memory"
    client_state = ("params",)
    contrasts = True

    config: Config

    def local_loss(self, batch: Batch) -> Tensor:
        """FedAvg's loss plus the contrast of details."""
        loss = super().local_loss(batch)
        if not batch.features:
            return loss
        import torch
        import torch.nn.functional as F

        from fedvsr.losses import contrast

        height, width = batch.features["local"].shape[-2:]
        bands = torch.stack(detail_bands(batch.gt.flatten(0, 1), 2, self.config.wavelet))
        energy_N1HW = bands.square().sum(dim=0).mean(dim=1, keepdim=True)
        # The constant lets a flat frame count equally everywhere.
        strength = F.adaptive_avg_pool2d(energy_N1HW, (height, width)).sqrt() + 1e-6
        share = strength / strength.sum(dim=(2, 3), keepdim=True)
        z = {name: (share * f).sum(dim=(2, 3)) for name, f in batch.features.items()}
        pulled = contrast(z["local"], z["global"], z["previous"], self.config.temperature)
        return loss + self.config.lambda_con * pulled

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """FedAvg in the first round; later, each tensor by its similarity to the past."""
        if round_info.round_idx == 1:
            return super().aggregate(uploads, weights, server, round_info)
        past = server["params"]
        total = np.zeros_like(past)
        shares = np.zeros(len(round_info.tensors))
        for upload in uploads:
            for i, part in enumerate(round_info.tensors):
                # A cosine is at most 1, so the softmax cannot overflow.
                share = math.exp(cosine(upload["params"][part], past[part]))
                total[part] += np.float32(share) * upload["params"][part]
                shares[i] += share
        for part, share in zip(round_info.tensors, shares, strict=True):
            total[part] /= np.float32(share)
        return Aggregated({"params": total}, None)


def cosine(one: FloatVector, other: FloatVector) -> float:
    """Cosine similarity of two vectors; 0 if one of them is zero."""
    norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms else 0.0
