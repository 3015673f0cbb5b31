"""Gradient checkpointing: less memory for more arithmetic, with the same gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

Checkpointing = Literal["none", "attention", "blocks"]


def run(function: Callable[..., Tensor], recompute: bool, *args: Any) -> Tensor:
    """`function(*args)`; if `recompute`, the backward pass computes its inner values anew."""
    if not (recompute and torch.is_grad_enabled()):
        return function(*args)
    out: Tensor = checkpoint(function, *args, use_reentrant=False)
    return out
