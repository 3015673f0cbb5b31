"""FedSR: Yang, Ren and Ke, Knowledge-Based Systems 309, 2025.

Federated learning for image super-resolution. What is public is its outline: a detail-assisted
contrastive loss that aligns features at the client, and at the server a hierarchical, layer-wise
aggregation with the past global model. The FedVSR authors' comparison fills in some of the rest.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, Batch, FedAvg
from fedvsr.losses import contrast
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector
from fedvsr.wavelets import detail_bands


class Config(AlgorithmConfig):
    """FedSR, as read from its outline and FedVSR's published comparison with it."""

    name: Literal["fedsr"] = "fedsr"
    lambda_con: float = Field(0.1, ge=0, le=100, description="Weight of the contrast.")
    temperature: float = Field(0.07, gt=0, le=100, description="Temperature tau of the contrast.")


class Algorithm(FedAvg):
    """MOON's contrast where there is detail, and tensors weighed by their likeness to the past.

    Loss: as in `moon`, but features are averaged over a frame with the strength of the ground
    truth's detail as weights (the root of the energy of its Haar bands LH, HL and HH, at the
    features' size), so flat regions, which all networks see alike, hardly count. This is our
    reading of "detail-assisted"; FedVSR's published comparison weighs all pixels alike, and has a
    head behind that never learns.

    Server, as in that comparison: in the first round FedAvg; then client k weighs, in every
    parameter tensor l, `softmax_k(cos(w_k^l, w_t^l))`, w_t the past global network.
    """

    source = "Yang et al., KBS 2025 (outline)"
    extra_compute = "two forward passes a step; two more networks in memory"
    client_state = ("params",)
    contrasts = True

    def local_loss(self, batch: Batch) -> Tensor:
        """The loss, and the contrast of details."""
        loss = super().local_loss(batch)
        if not batch.features:
            return loss
        height, width = batch.features["local"].shape[-2:]
        bands = torch.stack(detail_bands(batch.gt.flatten(0, 1), 2, self.config.wavelet))
        energy_N1HW = bands.square().sum(dim=0).mean(dim=1, keepdim=True)
        # The constant: a flat frame counts everywhere alike.
        strength = F.adaptive_avg_pool2d(energy_N1HW, (height, width)).sqrt() + 1e-6
        share = strength / strength.sum(dim=(2, 3), keepdim=True)
        z = {name: (share * f).sum(dim=(2, 3)) for name, f in batch.features.items()}
        pulled = contrast(z["local"], z["global"], z["previous"], self.config.temperature)
        both: Tensor = loss + self.config.lambda_con * pulled
        return both

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """In the first round FedAvg; then each tensor by its likeness to the past."""
        if this.round_idx == 1:
            return super().aggregate(uploads, weights, server, this)
        past = server["params"]
        total = np.zeros_like(past)
        shares = np.zeros(len(this.tensors))
        for upload in uploads:
            for i, part in enumerate(this.tensors):
                # A cosine is at most 1: the softmax needs no maximum taken off.
                share = math.exp(cosine(upload["params"][part], past[part]))
                total[part] += np.float32(share) * upload["params"][part]
                shares[i] += share
        for part, share in zip(this.tensors, shares, strict=True):
            total[part] /= np.float32(share)
        return Aggregated({"params": total}, None)


def cosine(one: FloatVector, other: FloatVector) -> float:
    """Cosine similarity of two vectors; 0 where one of them is zero."""
    norms = float(np.linalg.norm(one)) * float(np.linalg.norm(other))
    return float(np.dot(one, other)) / norms if norms else 0.0
