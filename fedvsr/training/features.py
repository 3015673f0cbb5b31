"""What a network knows before it enlarges: its last features at low resolution."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def with_features(network: nn.Module, module: str, lq_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Super-resolve clips, and keep what enters `module` on the way.

    Returns:
        What the network gives, and features (B * T, C, H, W) in float32.
    """
    seen = list[Tensor]()

    def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        seen.append(inputs[0])

    # Only for this pass: a backward pass that recomputes runs the module again.
    handle = network.get_submodule(module).register_forward_pre_hook(keep)
    try:
        sr_BTCHW = network(lq_BTCHW)
    finally:
        handle.remove()
    return sr_BTCHW, torch.cat(seen).float()
