"""A network that diverged gives values that are not finite, which a client reports.

Positions that are no numbers must not become addresses: that ended the process before it could say
anything.
"""

from __future__ import annotations

import pytest
import torch

from fedvsr import models
from fedvsr.models._flow import flow_warp
from fedvsr.models._sampling import gathered, grid_sample, pixel_index

NAN = float("nan")


@pytest.mark.parametrize("name", ["tiny", "vrt", "rvrt", "iart", "basicvsrpp"])
@pytest.mark.parametrize("weight", [NAN, 1e30])
def test_a_network_that_diverged_computes_to_the_end(name: str, weight: float) -> None:
    network = models.build(name, **({} if name == "tiny" else {"size": "demo"})).train()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(weight)
    sr = network(torch.rand(1, 2, 3, 32, 32))
    sr.sum().backward()
    assert not sr.isfinite().all()


@pytest.mark.parametrize("sample", [grid_sample, gathered])
@pytest.mark.parametrize("padding", ["zeros", "border"])
def test_positions_that_are_no_numbers_change_no_others(sample, padding) -> None:
    x = torch.rand(1, 2, 8, 8, requires_grad=True)
    grid = 2 * torch.rand(1, 4, 4, 2) - 1
    want = sample(x, grid, padding).detach()
    grid[0, 0] = NAN
    got = sample(x, grid.requires_grad_(), padding)
    got[:, :, 1:].sum().backward()
    assert torch.equal(got[:, :, 1:], want[:, :, 1:])
    assert x.grad.isfinite().all()


def test_flows_that_are_no_numbers_have_neighbours() -> None:
    flow = torch.zeros(1, 2, 4, 4)
    flow[0, :, 0] = NAN
    assert flow_warp(torch.rand(1, 3, 4, 4), flow, "nearest4").shape == (1, 12, 4, 4)


def test_an_index_is_inside_the_image() -> None:
    positions = torch.tensor([NAN, float("inf"), -float("inf"), 1e30, -1.0, 3.0])
    assert pixel_index(positions, 5).tolist() == [0, 4, 0, 4, 0, 3]
