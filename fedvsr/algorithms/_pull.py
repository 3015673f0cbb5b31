"""The gradient of a quadratic pull to the global network, for several methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fedvsr.algorithms.base import LocalRound


def pull(local: LocalRound, strength: float) -> float:
    """Add `strength (w - w_t)` to those gradients that exist; it is exact for every optimiser.

    Returns:
        The term of the loss, `strength / 2 * |w - w_t|^2`.
    """
    import torch

    if strength == 0:
        return 0.0
    learning = [
        (p.grad, p.detach(), g)
        for p, g in zip(local.params, local.shared["params"], strict=True)
        if p.grad is not None
    ]
    grads, params, anchors = (list(column) for column in zip(*learning, strict=True))
    differences = torch._foreach_sub(params, anchors)
    torch._foreach_add_(grads, differences, alpha=strength)
    norms = torch.stack(torch._foreach_norm(differences)).double()
    return float(0.5 * strength * norms.square().sum().item())
