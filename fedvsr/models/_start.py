"""Fresh weights with which few steps lead beyond the enlargement that a network adds to.

As published, features begin as brightness, which says nothing of the residual, and layer
normalisation takes away how strong an edge is. It then takes hundreds of steps to learn what these
weights begin with.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from fedvsr.models._norm import LayerNorm

# Edges in videos are small: this makes features of about 1 of them.
_EDGE_GAIN = 8.0
# At zero no other parameter would learn in the first step.
_NEARLY_ZERO = 1e-3
_BRANCH_GAIN = 0.1
_NEIGHBOUR_GAIN = 0.3
# A constant that is large beside features of about 1.
_CARRIER = 2.0


def start_with_gain(conv: nn.Module, gain: float = 1.0) -> None:
    """Draw weights that keep a rectifier's variance, times the gain, and no bias."""
    assert isinstance(conv, nn.Conv2d | nn.Conv3d)
    assert conv.bias is not None
    nn.init.kaiming_normal_(conv.weight)
    nn.init.zeros_(conv.bias)
    with torch.no_grad():
        conv.weight.mul_(gain)


def start_on_edges(
    first: nn.Module,
    between: Iterable[nn.Module],
    last: nn.Module,
    branches: Iterable[nn.Module] = (),
    own_channels: int | None = None,
) -> None:
    """Begin a network's features as edges, and its residual as nearly zero.

    Args:
        first: the convolution that sees the frames: its kernels get a mean of zero.
        between: other convolutions whose outputs should be as large as their inputs.
        last: the convolution that makes the residual.
        branches: the last layers of branches that normalise features and are added to them. They
            begin small, so that what is added to counts.
        own_channels: how many of the first convolution's inputs show the frame itself; the others
            show its neighbours, which begin small because flow does not align them yet.
    """
    for conv in (first, *between):
        start_with_gain(conv)
    assert isinstance(first, nn.Conv2d | nn.Conv3d)
    with torch.no_grad():
        first.weight.sub_(first.weight.mean((-2, -1), keepdim=True)).mul_(_EDGE_GAIN)
        if own_channels is not None:
            inputs = first.weight.shape[1]
            first.weight[:, :own_channels] *= (inputs / own_channels) ** 0.5
            first.weight[:, own_channels:] *= _NEIGHBOUR_GAIN
        for layer in branches:
            assert isinstance(layer, nn.Linear | nn.Conv2d | nn.Conv3d)
            layer.weight.mul_(_BRANCH_GAIN)
    start_with_gain(last, _NEARLY_ZERO)


def start_linear(before: nn.Module, norm: nn.Module) -> None:
    """Make a normalisation nearly linear: its input gets a constant that its bias takes off again.

    Beside a constant of zero mean and much variance, the variance of features hardly counts, so
    weak edges stay weak and strong ones strong.

    Args:
        before: the layer whose output, or what is added to it, is normalised.
        norm: the normalisation over channels.
    """
    assert isinstance(before, nn.Linear | nn.Conv2d | nn.Conv3d)
    assert isinstance(norm, LayerNorm)
    assert before.bias is not None
    constant = torch.full_like(before.bias, _CARRIER)
    constant[1::2] *= -1
    constant -= constant.mean()
    with torch.no_grad():
        before.bias.copy_(constant)
        norm.weight.fill_(_CARRIER)
        norm.bias.copy_(-constant)
