"""FedPR: Feng et al., Learning Federated Visual Prompt in Null Space, CVPR 2023.

The full title adds: for MRI Reconstruction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from fedvsr.algorithms.base import AlgorithmConfig, FedAvg, LocalRound

if TYPE_CHECKING:
    from torch import Tensor


class Config(AlgorithmConfig):
    """FedPR. The paper trains prompts with Adam at `local.lr` 0.1."""

    name: Literal["fedpr"] = "fedpr"
    ratio: float = Field(
        0.8,
        gt=0,
        le=1,
        description="Part of the directions in which prompts may move after the first round: those "
        "of the least singular values.",
    )


class Algorithm(FedAvg):
    """Learns the prompts of a frozen network, away from where the last round's prompts lie.

    It needs `model.weights` and `model.adapter: {kind: prompt}`; prompts alone travel, and are
    averaged by sizes. From the second round on, an optimiser's step of a prompt P, tokens x
    channels, is multiplied by `N = V V^T / |V V^T|_F`. V are the singular vectors of `P^T P`, for
    the P that the round begins with, without the first `1 - ratio` of them.

    A prompt is prepended to the keys and values of each attention window. Our reading: it passes
    through the layer's own frozen projections, and has neither a position nor a mask.
    """

    source = "Feng et al., CVPR 2023"
    extra_compute = "a product of matrices a step and prompt"
    learns_prompts = True
    corrects_steps = True

    config: Config

    def correct_step(self, local: LocalRound, before: Sequence[Tensor]) -> None:
        """Multiply the step of every prompt by its projector, from the second round on."""
        if local.round_idx == 1:
            return
        projectors = local.sums.get("projectors")
        if projectors is None:
            projectors = [projector(p, self.config.ratio) for p in local.shared["params"]]
            local.sums["projectors"] = projectors
        for p, start, within in zip(local.params, before, projectors, strict=True):
            if p.dim() == 2:
                p.copy_(start + (p - start) @ within)


def projector(prompt: Tensor, ratio: float) -> Tensor:
    """N, channels x channels, of a prompt, tokens x channels; empty for what is no matrix."""
    import torch

    if prompt.dim() != 2:
        return prompt.new_empty(0)
    exact = prompt.double().cpu()
    # Values in ascending order. One machine's bits: small matrices are no work for a GPU.
    _, vectors = torch.linalg.eigh(exact.T @ exact)
    kept = vectors[:, : len(vectors) - round((1 - ratio) * len(vectors))]
    within = kept @ kept.T
    scaled: Tensor = within / torch.linalg.matrix_norm(within)
    return scaled.to(prompt)
