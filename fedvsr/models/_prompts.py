"""Prompts: tokens that are learnt in place of a network's weights (VPT-Deep, Jia et al. 2022).

M windows of n tokens, C channels, h heads; t tokens of a prompt.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.models.spec import AdapterConfig

# Like the networks' tables of position biases.
_STD = 0.02


def add_prompts(network: nn.Module, config: AdapterConfig, name: str) -> None:
    """Add fresh prompts to every window attention of a network, and freeze all other parameters.

    A layer's prompt is `(t, C)`. Its keys and values, by the layer's own projection, join those of
    each window, without a position and without a mask. So the network computes something else from
    the start on: a softmax gives every token some weight.

    Args:
        network: the network.
        config: the number of tokens.
        name: the network's name, for the message.

    Raises:
        UserError: the network has no window attention.
    """
    layers = [layer for _, layer in _layers(network)]
    if not layers:
        raise UserError(
            f"model.adapter.kind = prompt finds no window attention in {name}; take a network that "
            "has it: vrt, rvrt or iart"
        )
    network.requires_grad_(False)
    for layer in layers:
        like = layer.proj.weight
        layer.prompt = nn.Parameter(like.new_empty(config.tokens, layer.channels))
        nn.init.normal_(layer.prompt, std=_STD)


def prompt_names(network: nn.Module) -> tuple[str, ...]:
    """The names of the prompts of a network; empty for a plain one."""
    return tuple(f"{name}.prompt" for name, m in _layers(network) if m.prompt is not None)


def _layers(network: nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers that take a prompt: their parameter of this name may be None."""
    return ((name, module) for name, module in network.named_modules() if hasattr(module, "prompt"))


def prompted_attention(
    qkv: tuple[Tensor, Tensor, Tensor], bias: Tensor | None, prompt_t3C: Tensor
) -> Tensor:
    """Softmax attention in windows whose tokens also look at a prompt.

    Args:
        qkv: queries, keys and values of the windows, each `(M, h, n, C / h)`.
        bias: added to the logits of the windows' own keys, `(n, n)` or one for each head.
        prompt_t3C: queries, which are not used, keys and values of the prompt, side by side.

    Returns:
        `(M, h, n, C / h)`.
    """
    q, k, v = qkv
    windows, heads, _, _ = k.shape
    _, *own = prompt_t3C.view(len(prompt_t3C), 3, heads, -1).transpose(0, 2).unbind(1)
    k, v = (
        torch.cat((of_prompt.expand(windows, -1, -1, -1), of_windows), dim=2)
        for of_prompt, of_windows in zip(own, (k, v), strict=True)
    )
    mask = None if bias is None else F.pad(bias.to(q.dtype), (len(prompt_t3C), 0))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
