"""Low-rank adapters (LoRA, Hu et al. 2022): `W + alpha / rank * B A` in the place of a weight `W`.

A weight of any shape counts as a matrix, a row for each output: with `O` outputs and `I` inputs
each, `A` is `(rank, I)` and `B` is `(O, rank)`.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.models.spec import AdapterConfig, ModelSpec

_CONVOLUTIONS = nn.Conv1d, nn.Conv2d, nn.Conv3d


class _Adapted(nn.Module):
    """What an adapted layer has besides its own parameters, which keep their names."""

    lora_a: nn.Parameter
    lora_b: nn.Parameter
    lora_scale: float

    @property
    def weight(self) -> Tensor:
        """The adapted weight: whoever reads the layer's weight, not only the layer, gets it."""
        base = self._parameters["weight"]
        assert base is not None
        # A product in halves would round the change away that few steps make.
        with torch.autocast(base.device.type, enabled=False):
            change = (self.lora_b @ self.lora_a).view_as(base)
            return torch.add(base, change, alpha=self.lora_scale)


def adapt(network: nn.Module, config: AdapterConfig, name: str) -> None:
    """Add fresh adapters to a network, and freeze all other parameters.

    `B` starts at zero, so that the network computes what it computed before, and `A` at a Gaussian
    that keeps the variance of a layer's input.

    Args:
        network: the network, as its module makes it.
        config: rank, scale and place of the adapters.
        name: the network's name, for the message.

    Raises:
        UserError: the network has no layer of the kind to adapt.
    """
    layers = list(_targets(network, config.targets))
    if not layers:
        others = [kind for kind in ("linear", "conv") if any(True for _ in _targets(network, kind))]
        way_out = f"set it to {' or '.join(others)}" if others else "leave model.adapter out"
        raise UserError(
            f"model.adapter.targets = {config.targets} finds no such layer in {name}; {way_out}"
        )
    network.requires_grad_(False)
    for layer in layers:
        weight = layer.weight.detach()
        outputs, inputs = weight.flatten(1).shape
        # A higher rank than the matrix can have would change nothing but the size.
        rank = min(config.rank, outputs, inputs)
        layer.__class__ = _adapted_kind(layer.__class__)
        layer.lora_a = nn.Parameter(weight.new_empty(rank, inputs), not config.freeze_a)
        layer.lora_b = nn.Parameter(weight.new_zeros(outputs, rank))
        layer.lora_scale = config.alpha / config.rank
        nn.init.normal_(layer.lora_a, std=inputs**-0.5)


def merge(network: nn.Module) -> None:
    """Add the adapters of a network to its weights, and make it a plain one of the same outputs."""
    for layer in _adapted(network):
        merged = layer.weight.detach()
        del layer.lora_a, layer.lora_b, layer.lora_scale
        layer.__class__ = type(layer).__bases__[1]
        with torch.no_grad():
            layer.weight.copy_(merged)
    network.requires_grad_(True)


def adapter_names(network: nn.Module) -> tuple[str, ...]:
    """The names of the tensors that adapters add to a network; empty for a plain one."""
    return tuple(
        f"{name}.{part}"
        for name, module in network.named_modules()
        if isinstance(module, _Adapted)
        for part in ("lora_a", "lora_b")
    )


def _adapted(network: nn.Module) -> Iterator[Any]:
    return (module for module in network.modules() if isinstance(module, _Adapted))


def _targets(network: nn.Module, kind: str) -> Iterator[Any]:
    wanted = _CONVOLUTIONS if kind == "conv" else nn.Linear
    layers = ((n, m) for n, m in network.named_modules() if isinstance(m, wanted))
    if kind != "attention":
        return (layer for _, layer in layers)
    rules = network.spec
    assert isinstance(rules, ModelSpec)
    if kind not in rules.parts:
        return iter(())
    return (layer for name, layer in layers if rules.in_part(kind, f"{name}.weight"))


@cache
def _adapted_kind(kind: type[nn.Module]) -> type[nn.Module]:
    """The adapted kind of a layer."""
    return type(kind.__name__, (_Adapted, kind), {})
