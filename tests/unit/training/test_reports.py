"""The numbers of a client's report from which FedNova and q-FFL compute weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvsr.algorithms import fednova
from fedvsr.config import ExperimentConfig
from fedvsr.messages import ClientReport, ClientTask
from fedvsr.params import flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.training.local import LocalTrainer
from fedvsr.training.optimiser import effective_steps, lipschitz

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=4, seed=5)


def report(small: ExperimentConfig, mu: float = 0.0, **local: Any) -> ClientReport:
    clips = prepare_data(small, lambda *_: None).train[:2]
    torch.manual_seed(0)
    settings = small.local.model_copy(update=local)
    trainer = LocalTrainer(small.model, fednova.Config(mu=mu), settings)
    # The last layer starts at zero, so without this no other layer would have a gradient.
    params = flatten(trainer.network) + np.float32(0.01)
    return trainer.train(TASK, {"params": params}, {}, clips)[0]


def test_effective_steps_equal_the_distance_of_torchs_sgd(small: ExperimentConfig) -> None:
    # A gradient of 1 everywhere, with momentum, the proximal pull and a falling rate at once.
    rates, mu = [0.1, 0.08, 0.03, 0.01], 2.0
    position = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([position], lr=1, momentum=0.7)
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        position.grad = -1 + mu * position.detach()
        optimiser.step()
    local = small.local.model_copy(update={"optimizer": "sgd", "momentum": 0.7})
    assert effective_steps(local, mu, rates) == pytest.approx(position.item() / (sum(rates) / 4))


def test_a_client_counts_its_effective_steps(small: ExperimentConfig) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.1, "steps": 3}
    # Steps; momentum 1/2: (1) + (1 + 1/2) + (1 + 1/2 + 1/4); pull 2: 1 + 0.8 + 0.64.
    assert report(small, **sgd).effective_steps == pytest.approx(3)
    assert report(small, **sgd, momentum=0.5).effective_steps == pytest.approx(4.25)
    assert report(small, mu=2.0, **sgd).effective_steps == pytest.approx(2.44)
    assert report(small, mu=2.0, steps=3).effective_steps == 3, "the number of Adam's steps"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lipschitz_turns_an_update_into_a_gradient(small: ExperimentConfig, precision: str) -> None:
    # One step of SGD is -lr times the gradient, whose norm is that of the update over lr.
    sgd = report(small, optimizer="sgd", lr=1e-2, steps=1, precision=precision)
    assert sgd.lipschitz == pytest.approx(100)
    gradient_norm = sgd.update_norm / 1e-2
    # Several steps of Adam: the update times L is as long as the first gradient.
    adam = report(small, lr=1e-3, steps=3, precision=precision)
    assert adam.lipschitz * adam.update_norm == pytest.approx(gradient_norm, rel=1e-3)
    assert adam.lipschitz < 0.1 / 1e-3, "far from SGD's 1 / lr"


def test_lipschitz_without_a_gradient_or_update_is_one_over_the_rate(
    small: ExperimentConfig,
) -> None:
    assert lipschitz(small.local, 0.02, 0.0, 1.0) == 50
    assert lipschitz(small.local, 0.02, 1.0, 0.0) == 50
