"""Optimisers that need no compiler: the bits of PyTorch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fedvsr.training.config import LocalConfig
from fedvsr.training.optimiser import make_optimiser, moments, restore_moments

TORCHS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def stepped(optimiser: torch.optim.Optimizer, params: list[nn.Parameter]) -> None:
    """Take three steps, of which one leaves a parameter out."""
    generator = torch.Generator().manual_seed(1)
    for step in range(3):
        optimiser.zero_grad()
        assert all(parameter.grad is None for parameter in params)
        for i, parameter in enumerate(params):
            if (step, i) != (1, 0):
                parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()


def params_of() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(3, 5), (7,), (64, 33)]
    return [nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_steps_have_the_bits_of_pytorchs(name: str) -> None:
    local = LocalConfig(
        optimizer=name, momentum=0.9 if name == "sgd" else 0.0, weight_decay=0.1, slow_factor=0.5
    )
    ours, torchs = params_of(), params_of()
    optimiser = make_optimiser(local, ours, ours[:1])
    more = {"momentum": local.momentum} if name == "sgd" else {"betas": local.betas}
    reference = TORCHS[name](
        [{"params": torchs[1:]}, {"params": torchs[:1]}],
        lr=local.lr,
        weight_decay=local.weight_decay,
        **more,  # type: ignore[arg-type]
    )
    stepped(optimiser, ours)
    stepped(reference, torchs)
    assert all(map(torch.equal, ours, torchs))
    again = make_optimiser(local, ours, ours[:1])
    restore_moments(again, moments(optimiser))
    stepped(again, ours)
    stepped(reference, torchs)
    assert all(map(torch.equal, ours, torchs))
    assert optimiser.defaults.keys() == reference.defaults.keys()
