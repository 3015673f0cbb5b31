"""The features that algorithms contrast: a network's last ones at low resolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def with_features(network: nn.Module, module: str, lq_BTCHW: Tensor) -> tuple[Tensor, Tensor]:
    """Super-resolve clips, and capture the input of the network's layer `module`.

    Returns:
        The network's output, and the features (B * T, C, H, W) in float32.
    """
    captured = list[Tensor]()

    def capture(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        captured.append(inputs[0])

    # Removed at once: a backward pass that recomputes activations would run the hook again.
    handle = network.get_submodule(module).register_forward_pre_hook(capture)
    try:
        sr_BTCHW = network(lq_BTCHW)
    finally:
        handle.remove()
    return sr_BTCHW, torch.cat(captured).float()
