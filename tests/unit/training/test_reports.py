"""What a client's report tells the weights of FedNova and q-FFL."""

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
    # The last layer starts at zero, which would keep the first gradient from the others.
    params = flatten(trainer.network) + np.float32(0.01)
    return trainer.train(TASK, {"params": params}, {}, clips)[0]


def test_effective_steps_are_the_way_of_torchs_own_sgd(small: ExperimentConfig) -> None:
    # A slope of 1 everywhere, momentum, the proximal pull and a falling rate, all at once.
    rates, mu = [0.1, 0.08, 0.03, 0.01], 2.0
    place = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimiser = torch.optim.SGD([place], lr=1, momentum=0.7)
    for rate in rates:
        optimiser.param_groups[0]["lr"] = rate
        place.grad = -1 + mu * place.detach()
        optimiser.step()
    local = small.local.model_copy(update={"optimizer": "sgd", "momentum": 0.7})
    assert effective_steps(local, mu, rates) == pytest.approx(place.item() / (sum(rates) / 4))


def test_a_client_counts_its_effective_steps(small: ExperimentConfig) -> None:
    sgd = {"optimizer": "sgd", "lr": 0.1, "steps": 3}
    # Steps; momentum 1/2: (1) + (1 + 1/2) + (1 + 1/2 + 1/4); pull 2: 1 + 0.8 + 0.64.
    assert report(small, **sgd).effective_steps == pytest.approx(3)
    assert report(small, **sgd, momentum=0.5).effective_steps == pytest.approx(4.25)
    assert report(small, mu=2.0, **sgd).effective_steps == pytest.approx(2.44)
    assert report(small, mu=2.0, steps=3).effective_steps == 3, "Adam's are counted"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_lipschitz_makes_a_gradient_of_a_change(small: ExperimentConfig, precision: str) -> None:
    # One step of SGD is -lr times the gradient: its norm is that of the change over lr.
    sgd = report(small, optimizer="sgd", lr=1e-2, steps=1, precision=precision)
    assert sgd.lipschitz == pytest.approx(100)
    gradient_norm = sgd.update_norm / 1e-2
    # Adam, several steps: the change, times L, is as long as the first gradient.
    adam = report(small, lr=1e-3, steps=3, precision=precision)
    assert adam.lipschitz * adam.update_norm == pytest.approx(gradient_norm, rel=1e-3)
    assert adam.lipschitz < 0.1 / 1e-3, "far from what SGD's rule would say"


def test_nothing_to_compare_falls_back_on_the_rate(small: ExperimentConfig) -> None:
    assert lipschitz(small.local, 0.02, 0.0, 1.0) == 50
    assert lipschitz(small.local, 0.02, 1.0, 0.0) == 50
