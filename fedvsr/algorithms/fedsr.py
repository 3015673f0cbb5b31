"""FedSR: Yang, Ren and Ke, Knowledge-Based Systems 309, 2025.

Federated learning for image super-resolution. What is public is its outline: a detail-assisted
contrastive loss that aligns features at the client, and at the server a hierarchical, layer-wise
aggregation with the past global model. The equations below are this program's reading of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from fedvsr.algorithms._base import Aggregated, AlgorithmConfig, Batch, FedAvg
from fedvsr.losses import contrast
from fedvsr.messages import Round, Vectors
from fedvsr.params import weighted_sums
from fedvsr.wavelets import detail_bands


class Config(AlgorithmConfig):
    """FedSR, as read from its outline."""

    name: Literal["fedsr"] = "fedsr"
    lambda_con: float = Field(
        0.01,
        ge=0,
        le=100,
        description="Weight of the contrast; for classification, MOON takes 1 and more.",
    )
    temperature: float = Field(0.5, gt=0, le=100, description="Temperature tau of the contrast.")
    history: float = Field(
        0.5, ge=0, le=1, description="Most that the past global network keeps of a layer."
    )


class Algorithm(FedAvg):
    """MOON's contrast where there is detail, and layers that keep their past where clients differ.

    Loss: as in `moon`, but features are averaged over a frame with the strength of the ground
    truth's detail as weights (the root of the energy of its Haar bands LH, HL and HH, at the
    features' size), so flat regions, which all networks see alike, hardly count.

    Server: a layer l (the parameters of one module) becomes `(1 - b_l) mean_l + b_l past_l` with
    `b_l = history * D_l / (D_l + M_l)`, where `D_l^2 = sum_k p_k |w_k - mean|^2` over the layer is
    how far clients are apart and `M_l = |mean - past|` how far they moved together.
    """

    source = "Yang et al., KBS 2025 (outline only)"
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
        self, uploads: Iterable[Vectors], weights: Sequence[float], server: Vectors
    ) -> Aggregated:
        """The weighted mean, and the weighted mean of squared distances from the past."""
        past = server["params"]
        sets = (
            {"params": upload["params"], "square": (upload["params"] - past) ** 2}
            for upload in uploads
        )
        return Aggregated(weighted_sums(sets, {"params": weights, "square": weights}), weights)

    def server_step(self, server: Vectors, aggregated: Vectors, this: Round) -> Vectors:
        """Mix layer by layer."""
        past, mean = server["params"], aggregated["params"]
        params = np.empty_like(mean)
        for layer in this.layers:
            moved = mean[layer] - past[layer]
            together = float(np.dot(moved, moved))
            # Weights sum to 1: the variance is the mean square less the square of the mean.
            apart = max(0.0, float(aggregated["square"][layer].sum(dtype=np.float64)) - together)
            total = apart**0.5 + together**0.5
            kept = self.config.history * apart**0.5 / total if total else 0.0
            params[layer] = mean[layer] - np.float32(kept) * moved
        return {**server, "params": params}
