"""The attack finds a frame in the gradient of a step, and finds nothing in noise."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fedvsr import algorithms, models
from fedvsr.algorithms.fedavg import Config as FedAvgConfig
from fedvsr.attack.invert import Effort, Target, invert, mean_colour, target_frames
from fedvsr.errors import UserError
from fedvsr.losses import charbonnier
from fedvsr.models.tiny import Config
from fedvsr.params import join_tensors
from fedvsr.resize import upscale_planes

SIZE, SCALE = 6, 2


def network() -> torch.nn.Module:
    """A small network all of whose layers learn: its last layer is not zero, as at the start."""
    torch.manual_seed(5)
    made = models.build_fresh(Config(channels=8, blocks=0, scale=SCALE))
    with torch.no_grad():
        made.to_pixels.weight.normal_(0, 0.05)
    return made


def frame() -> tuple[Tensor, Tensor]:
    """A smooth frame (1, 1, 3, 6, 6), and a sharper target."""
    y, x = torch.meshgrid(torch.linspace(0, 1, SIZE), torch.linspace(0, 1, SIZE), indexing="ij")
    lq = torch.stack([0.2 + 0.6 * x, 0.7 - 0.4 * y, 0.4 + 0.4 * x * y])[None]
    torch.manual_seed(6)
    gt = (upscale_planes(lq, SCALE) + 0.05 * torch.randn(1, 3, 2 * SIZE, 2 * SIZE)).clamp(0, 1)
    return lq[None], gt[None]


def gradient(net: torch.nn.Module, lq: Tensor, gt: Tensor) -> tuple[np.ndarray, float]:
    """What a step of SGD takes from the parameters, but for its length; and the loss."""
    loss = charbonnier(net(lq), gt)
    return join_tensors(torch.autograd.grad(loss, list(net.parameters()))), float(loss.item())


def psnr_db(found: Tensor, truth: Tensor) -> float:
    return float(-10 * torch.log10((found - truth).square().mean()))


def flat_db(truth: Tensor) -> float:
    return psnr_db(truth.mean((-1, -2), keepdim=True).expand_as(truth), truth)


def test_finds_a_frame_in_the_gradient_of_a_step_and_nothing_in_noise() -> None:
    net, (lq, gt) = network(), frame()
    change, loss = gradient(net, lq, gt)
    effort, shape = Effort(iterations=100, smoothness=1.0), (1, SIZE, SIZE)
    # Clipping only shortens an update.
    found = invert(net, Target(change * np.float32(0.01), net), shape, effort)
    assert psnr_db(found.lq, lq) > flat_db(lq) + 8
    algorithm = algorithms.build(FedAvgConfig())
    target = target_frames(net, found, algorithm, 1e-9, loss)
    assert psnr_db(target, gt) > flat_db(gt) + 4
    length = float(np.linalg.norm(change))
    noise = np.random.default_rng(1).standard_normal(change.size).astype(np.float32) * length
    noisy = invert(net, Target(change + noise, net), shape, effort)
    assert psnr_db(noisy.lq, lq) < flat_db(lq) - 4


def test_equal_seeds_give_equal_bits_and_the_best_start_is_kept() -> None:
    net, (lq, gt) = network(), frame()
    target = Target(gradient(net, lq, gt)[0], net)
    torch.manual_seed(1)
    first = invert(net, target, (1, SIZE, SIZE), Effort(iterations=3, seed=7))
    torch.manual_seed(2)
    second = invert(net, target, (1, SIZE, SIZE), Effort(iterations=3, seed=7))
    assert torch.equal(first.lq, second.lq)
    assert torch.equal(first.slopes, second.slopes)
    ticks = list[int]()
    several = invert(net, target, (1, SIZE, SIZE), Effort(3, starts=4, seed=7), ticks.append)
    assert ticks == [*range(1, 13)]
    assert several.mismatch <= first.mismatch


def test_the_colour_of_a_frame_of_one_colour_is_exact() -> None:
    net = network()
    colour = torch.tensor([0.8, 0.35, 0.1])
    lq = colour.view(1, 1, 3, 1, 1).expand(1, 1, 3, SIZE, SIZE)
    change, _ = gradient(net, lq, frame()[1])
    found = mean_colour(net, Target(change, net).tensors)
    assert found is not None
    # (middle of the kernel) / bias = sum(slope * (colour - 0.5)) / sum(slope) = colour - 0.5
    assert torch.allclose(found, colour, atol=1e-5)


def test_nothing_reaches_the_first_layer_through_a_last_layer_of_zeros() -> None:
    fresh = models.build_fresh(Config(channels=8, blocks=0, scale=SCALE))
    change, _ = gradient(fresh, *frame())
    assert mean_colour(fresh, Target(change, fresh).tensors) is None


def test_what_cannot_be_attacked_is_refused_in_one_line() -> None:
    net = network()
    zero = np.zeros(sum(p.numel() for p in net.parameters()), np.float32)
    with pytest.raises(UserError, match="the update is zero"):
        invert(net, Target(zero, net), (1, SIZE, SIZE), Effort(iterations=1))

    warping = Warping()
    change = np.ones(12, np.float32)
    with pytest.raises(UserError, match="second derivatives"):
        invert(warping, Target(change, warping), (1, SIZE, SIZE), Effort(iterations=1))


class Once(torch.autograd.Function):
    """A layer whose slope has no slope, as those with kernels of their own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return 2 * x

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        return 2 * slope


class Warping(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 3, 1)

    def forward(self, lq: Tensor) -> Tensor:
        return Once.apply(self.conv(lq.flatten(0, 1)))[None]
