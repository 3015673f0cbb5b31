"""What networks of size demo begin with: bilinear enlargement, and features of edges."""

from __future__ import annotations

from functools import lru_cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fedvsr import models
from fedvsr.determinism import scoped_torch
from fedvsr.models._norm import LayerNorm
from fedvsr.models._start import start_linear
from fedvsr.models.spec import FlowModelConfig

NETWORKS = [
    name
    for name, module in models.KIND.modules().items()
    if issubclass(module.Config, FlowModelConfig)
]


def fresh(name: str, **settings: object) -> nn.Module:
    with scoped_torch(1, 1):
        return models.build(name, size="demo", **settings).eval()


def inputs() -> Tensor:
    """Clips of noise, of two greys, of a weak edge, and of one four times as strong."""
    clips = torch.full((5, 2, 3, 32, 32), 0.4)
    clips[0] = torch.rand(clips[0].shape, generator=torch.Generator().manual_seed(1))
    clips[2] += 0.1
    clips[3, ..., 16:] += 0.025
    clips[4, ..., 16:] += 0.1
    return clips


@lru_cache
def outputs(name: str) -> tuple[Tensor, Tensor]:
    """What a fresh network makes of `inputs()`: its output, and its last convolution's input."""
    network, seen = fresh(name), list[Tensor]()
    # Flow follows what the frames show, and must not move the features that are compared.
    nn.init.zeros_([*network.spynet.parameters()][-1])
    network.conv_last.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    with torch.no_grad():
        sr = network(inputs())
    return sr, torch.unflatten(torch.cat(seen), 0, (len(sr), -1))[..., 32:-32, 32:-32]


@pytest.mark.parametrize("name", NETWORKS)
def test_the_small_size_begins_as_bilinear(name: str) -> None:
    base = F.interpolate(inputs()[0], scale_factor=4, mode="bilinear")
    assert torch.allclose(outputs(name)[0][0], base, atol=0.05)


@pytest.mark.parametrize("name", NETWORKS)
def test_features_tell_weak_edges_from_strong_ones_and_no_brightness(name: str) -> None:
    _, grey, lighter, weak, strong = outputs(name)[1]
    # Normalised as published, both edges are about equally strong.
    assert 0.15 < (weak - grey).norm() / (strong - grey).norm() < 0.5
    assert (lighter - grey).norm() < 0.1 * (strong - grey).norm()


def test_vrt_begins_with_a_frames_own_edges() -> None:
    first = fresh("vrt").conv_first
    clips, own, around = torch.rand(1, 27, 8, 8), torch.zeros(1, 27, 8, 8), torch.zeros(1, 27, 8, 8)
    own[:, :3], around[:, 3:] = clips[:, :3], clips[:, 3:]
    with torch.no_grad():
        assert first(around).norm() < 0.5 * first(own).norm()


def test_vrt_that_restores_begins_with_its_input() -> None:
    lq = torch.rand(1, 2, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(fresh("vrt", upscale=1)(lq), lq, atol=0.05)


def test_a_normalisation_keeps_how_strong_its_input_is() -> None:
    torch.manual_seed(0)
    before, norm = nn.Linear(8, 8), LayerNorm(8)
    start_linear(before, norm)
    x = torch.randn(100, 8)
    x -= x.mean(-1, keepdim=True)
    with torch.no_grad():
        weak, strong = (norm(before.bias + gain * x).norm() for gain in (0.1, 0.4))
    assert 3.5 < strong / weak < 4.2
