"""Recomputes values in the backward pass instead of keeping them (Chen et al. 2016)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Kept:
    """Outputs of fused attention, kept from the first of two equal runs of a function.

    The first run adds them; the second reads them in the same order.
    """

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []
        self.complete = False
        self.read = 0

    def close(self) -> None:
        """End the first run."""
        self.complete = True
        if self.outputs:
            # One block of memory: scattered blocks would keep the C allocator from reusing the
            # space between them, about as much as they take.
            together = torch.cat([output.flatten() for output in self.outputs])
            parts = torch.split(together, [output.numel() for output in self.outputs])
            self.outputs = [
                part.view_as(output) for part, output in zip(parts, self.outputs, strict=True)
            ]

    def next(self) -> Tensor | None:
        """In the second run, the next output of the first; None in the first run."""
        if not self.complete:
            return None
        self.read += 1
        return self.outputs[(self.read - 1) % len(self.outputs)]


def recompute(function: Callable[[Tensor, Kept | None], Tensor], x: Tensor) -> Tensor:
    """Call `function`, and call it again in the backward pass instead of keeping its inner values.

    Args:
        function: maps a tensor to a tensor. It may pass its second argument to `biased_attention`,
            whose outputs are then kept on CPUs: they are small, but slow to compute. It must not
            draw random numbers, because the second call would draw others.
        x: the first argument of `function`.
    """
    if not torch.is_grad_enabled():
        return function(x, None)
    kept = Kept() if x.is_cpu and not torch.compiler.is_compiling() else None
    out: Tensor = checkpoint(function, x, kept, use_reentrant=False, preserve_rng_state=False)
    if kept:
        kept.close()
    return out


def recompute_plain(function: Callable[..., Tensor], *args: Tensor) -> Tensor:
    """`recompute` for a function of tensors only, which neither attends nor draws random numbers.

    Pass every large tensor as an argument: a tensor that the function closes over is held until the
    backward pass, even if an outer call of `recompute` would free it.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    out: Tensor = checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False)
    return out
