from __future__ import annotations

import numpy as np
import pytest
import torch

from fedvsr.algorithms.base import LocalRound
from fedvsr.algorithms.fisher import Algorithm, Config
from fedvsr.messages import Round


def test_a_parameter_follows_the_client_to_which_it_matters() -> None:
    # Fisher (3, 1) and (1, 3), floor 0.5 of the mean 2 is 1: raised (4, 2) and (2, 4).
    # With equal weights: (4 * 0 + 2 * 6) / 6 = 2 and (2 * 0 + 4 * 6) / 6 = 4.
    uploads = [
        {"params": np.float32([0, 0]), "fisher": np.float32([3, 1])},
        {"params": np.float32([6, 6]), "fisher": np.float32([1, 3])},
    ]
    result = Algorithm(Config(floor=0.5)).aggregate(
        uploads, [0.5, 0.5], uploads[0], Round(1, 3, 2, 2, ())
    )
    assert result.vectors["params"] == pytest.approx([2, 4])
    assert result.weights is None


def test_fisher_is_the_mean_square_over_the_last_epoch() -> None:
    # Three steps with gradients 9, 1, 3, two of them in the last epoch: (1 + 9) / 2.
    algorithm = Algorithm(Config())
    parameter = torch.nn.Parameter(torch.zeros(1))
    local = LocalRound([parameter], {"params": [torch.zeros(1)]}, {}, {}, 3, 2)
    for step, gradient in enumerate((9.0, 1.0, 3.0)):
        parameter.grad = torch.tensor([gradient])
        assert algorithm.correct_gradients(local, step) == 0
        assert parameter.grad.item() == gradient
    assert algorithm.finish(local)[0]["fisher"][0].tolist() == [5.0]
