from __future__ import annotations

from typing import Literal

import pytest
import torch

from fedvsr.models._sampling import gathered, grid_sample


@pytest.mark.parametrize("padding", ["zeros", "border"])
@pytest.mark.parametrize("size", [(5, 7), (2, 3)])
def test_the_path_of_fixed_order_gives_the_same_values_and_gradients(
    padding: Literal["zeros", "border"], size: tuple[int, int]
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(3, 4, *size, generator=draw, dtype=torch.float64)
    # A third of the positions is outside; the first are at corners and far away.
    grid = 1.5 * (2 * torch.rand(3, 6, 5, 2, generator=draw, dtype=torch.float64) - 1)
    grid[0, 0, :4] = torch.tensor([[-1, -1], [1, 1], [-1, 1], [900.0, -900.0]])
    weight = torch.randn(3, 4, 6, 5, generator=draw, dtype=torch.float64)
    results = []
    for sample in (grid_sample, gathered):
        leaves = [x.clone().requires_grad_(), grid.clone().requires_grad_()]
        out = sample(*leaves, padding)
        gradients = torch.autograd.grad((out * weight).sum(), leaves)
        # At whole positions, which only the corners are, the slopes of both sides are right.
        gradients[1][0, 0, :3] = 0
        results.append([out, *gradients])
    for want, got in zip(*results, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


@pytest.mark.gpu
def test_a_gpu_gives_the_same_bits_in_a_fixed_order() -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 8, 32, 32, generator=draw).cuda()
    # Many positions share a pixel, so sums of another order would differ.
    grid = (0.1 * torch.randn(2, 64, 64, 2, generator=draw)).cuda()
    torch.use_deterministic_algorithms(True)
    try:
        seen = set()
        for _ in range(5):
            leaves = [x.clone().requires_grad_(), grid.clone().requires_grad_()]
            gradients = torch.autograd.grad(grid_sample(*leaves).sin().sum(), leaves)
            seen.add(b"".join(g.cpu().numpy().tobytes() for g in gradients))
    finally:
        torch.use_deterministic_algorithms(False)
    assert len(seen) == 1
