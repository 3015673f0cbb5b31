from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from fedvsr import algorithms
from fedvsr.algorithms import fedvsr_published
from fedvsr.algorithms.base import Batch
from fedvsr.algorithms.fedvsr import Algorithm, Config
from fedvsr.hellinger import mix_by_hellinger
from fedvsr.lookup import load
from fedvsr.losses import high_frequency
from fedvsr.messages import ClientReport


def report(loss: float, round_idx: int = 1, num_samples: int = 1) -> ClientReport:
    return ClientReport(0, round_idx, num_samples, 1, loss, loss, 0.0)


def algorithm(**config: Any) -> Algorithm:
    return Algorithm(Config(**config))


def test_weights_by_hand() -> None:
    # No decay, alpha 1: losses 1, 2, 4 give 1 : 1/2 : 1/4 = 4/7, 2/7, 1/7, for all sizes.
    reports = [report(1.0, num_samples=9), report(2.0), report(4.0)]
    weights = algorithm(decay="none").weights(reports, 10)
    assert weights == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    # alpha 2: 1 : 1/4 : 1/16 = 16/21, 4/21, 1/21.
    weights = algorithm(decay="none", alpha=2).weights(reports, 10)
    assert weights == pytest.approx([16 / 21, 4 / 21, 1 / 21])


@pytest.mark.parametrize(
    ("decay", "alpha", "round_idx", "exponent"),
    [
        ("linear", 2.0, 1, 1.8),
        ("linear", 2.0, 5, 1.0),
        ("linear", 2.0, 10, 0.0),
        ("power", 4.0, 5, 2.0),
        ("power", 4.0, 10, 1.0),
        ("power", 1.0, 3, 1.0),
        ("none", 4.0, 9, 4.0),
    ],
)
def test_decay(decay: str, alpha: float, round_idx: int, exponent: float) -> None:
    assert algorithm(decay=decay, alpha=alpha).exponent(round_idx, 10) == pytest.approx(exponent)
    low, high = algorithm(decay=decay, alpha=alpha).weights(
        [report(1.0, round_idx), report(3.0, round_idx)], 10
    )
    assert low / high == pytest.approx(3**exponent)


def test_extreme_losses_do_not_overflow() -> None:
    weights = algorithm(decay="none", alpha=100).weights([report(1e-9), report(1e-3)], 10)
    assert weights == pytest.approx([1, 0])


def test_hellinger_by_hand() -> None:
    # p = (0.9, 0.1): sum of (sqrt(.5) - sqrt(p))^2 = .0583 + .1528 = .2111, h = .3249,
    # m = (.3249 - .05) / .95 = .28937, weights .5 + m * .4.
    assert mix_by_hellinger([0.9, 0.1], 0.05) == pytest.approx([0.61575, 0.38425], abs=1e-4)
    # Nearly equal losses: h is below the threshold, so weights are uniform.
    assert mix_by_hellinger([0.52, 0.48], 0.05) == [0.5, 0.5]
    # Without a threshold: h = 0.01414, weights .5 + h * .02.
    assert mix_by_hellinger([0.52, 0.48], 0) == pytest.approx([0.500283, 0.499717], abs=1e-6)
    mixed = algorithm(decay="none", mixing="hellinger").weights([report(1.0), report(9.0)], 10)
    assert mixed == pytest.approx([0.61575, 0.38425], abs=1e-4)
    # A threshold of 0.3: m = (.3249 - .3) / .7 = .03557.
    higher = algorithm(decay="none", mixing="hellinger", mixing_threshold=0.3)
    mixed = higher.weights([report(1.0), report(9.0)], 10)
    assert mixed == pytest.approx([0.51423, 0.48577], abs=1e-4)


def test_the_published_form_differs_by_wavelet_and_mixing() -> None:
    published = fedvsr_published.Config()
    assert (published.dwt, published.mixing) == ("3d", "hellinger")
    assert published.mixing_threshold == 0.05
    assert (published.lambda_vsr, published.lambda_hifr) == (1, 1)
    preprint = Config(dwt="3d", mixing="hellinger").model_dump(exclude={"name"})
    assert published.model_dump(exclude={"name"}) == preprint
    built = algorithms.build(published)
    reports = [report(1.0, 5, num_samples=1), report(9.0, 5, num_samples=4)]
    # Round 5 of 10: exponent 1/2, weights 3/4 and 1/4, h = .18459, m = .14168.
    assert built.weights(reports, 10) == pytest.approx([0.53542, 0.46458], abs=1e-5)
    sr, gt = torch.rand(1, 2, 3, 4, 4), torch.rand(1, 2, 3, 4, 4)
    loss = built.local_loss(Batch(torch.tensor(3.0), sr, gt))
    assert loss.item() == pytest.approx(3 + high_frequency(sr, gt, "3d").item())


def test_local_loss_is_eq_11() -> None:
    sr, gt = torch.rand(1, 2, 3, 4, 4), torch.rand(1, 2, 3, 4, 4)
    loss = algorithm(lambda_vsr=0.5, lambda_hifr=2).local_loss(Batch(torch.tensor(3.0), sr, gt))
    assert loss.item() == pytest.approx(1.5 + 2 * high_frequency(sr, gt).item())
    alone = algorithm(lambda_hifr=0).local_loss(Batch(torch.tensor(3.0), sr, gt))
    assert alone.item() == 3.0
    assert not math.isclose(
        loss.item(),
        algorithm(lambda_vsr=0.5, lambda_hifr=2, dwt="3d").local_loss(
            Batch(torch.tensor(3.0), sr, gt)
        ),
    )


@pytest.mark.parametrize(
    ("name", "weights", "detail"),
    [
        # Losses 1 and 3, of 1 and 4 samples, in round 5 of 10: exponent 1/2 with decay, else 1.
        ("f_ala", [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)], 0),
        ("f_gla", [3 / 4, 1 / 4], 0),
        ("f_hifr", [1 / 5, 4 / 5], 1),
        ("fedvsr", [3**0.5 / (1 + 3**0.5), 1 / (1 + 3**0.5)], 1),
    ],
)
def test_ablations(name: str, weights: list[float], detail: int) -> None:
    ablation = algorithms.build(load("fedvsr.algorithms", name).Config())
    reports = [report(1.0, 5, num_samples=1), report(3.0, 5, num_samples=4)]
    assert ablation.weights(reports, 10) == pytest.approx(weights)
    sr, gt = torch.rand(1, 2, 3, 4, 4), torch.rand(1, 2, 3, 4, 4)
    loss = ablation.local_loss(Batch(torch.tensor(3.0), sr, gt))
    assert loss.item() == pytest.approx(3 + detail * high_frequency(sr, gt).item())


def test_a_loss_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to minimise"):
        algorithm(lambda_vsr=0, lambda_hifr=0)
