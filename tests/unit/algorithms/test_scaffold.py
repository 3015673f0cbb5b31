from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from fedvsr.algorithms import fedavg, fedprox, scaffold
from fedvsr.algorithms.base import start
from fedvsr.config import ExperimentConfig
from fedvsr.messages import ClientTask, ClientUpdate, Round, Vectors
from fedvsr.params import FloatVector, flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.section import NamedSection
from fedvsr.training.local import LocalTrainer, effective_steps

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=3, seed=5)
ALONE = Round(1, 3, num_clients=1, num_sampled=1, tensors=())


def sgd(config: ExperimentConfig) -> ExperimentConfig:
    local = config.local.model_copy(update={"optimizer": "sgd", "lr": 0.05, "steps": 3})
    return config.model_copy(update={"local": local})


def train(
    config: ExperimentConfig, algorithm: NamedSection, shared: Vectors, state: Vectors
) -> ClientUpdate:
    trainer = LocalTrainer(config.model, algorithm, config.local)
    clips = prepare_data(config, lambda *_: None).train[:2]
    return trainer.train(TASK, shared, state, clips)[1]


def params_of(config: ExperimentConfig) -> FloatVector:
    return flatten(LocalTrainer(config.model, fedavg.Config(), config.local).network)


def test_control_of_sgd_is_option_ii(small: ExperimentConfig) -> None:
    config = sgd(small)
    x = params_of(config)
    random = np.random.default_rng(0)
    c, c_i = (1e-3 * random.standard_normal((2, x.size))).astype(np.float32)
    update = train(config, scaffold.Config(), {"params": x, "control": c}, {"control": c_i})
    # Option II: c_i - c + (x - y) / (K eta).
    expected = c_i - c + (x - update.upload["params"]) / (3 * 0.05)
    # x - y is a difference of numbers near 1, over 0.15.
    np.testing.assert_allclose(update.state["control"], expected, atol=2e-6)
    change = update.upload["control_change"]
    np.testing.assert_array_equal(change, update.state["control"] - c_i)


def test_option_i_is_the_gradient_where_the_client_begins(small: ExperimentConfig) -> None:
    config = sgd(small)
    x = params_of(config)
    shared = {"params": x, "control": np.zeros_like(x)}
    state = {"control": np.full_like(x, 0.1)}
    update = train(config, scaffold.Config(option=1), shared, state)
    # With steps too short to move, option II's gradients are all taken where option I's are.
    still = config.local.model_copy(update={"lr": 1e-12})
    same = train(config.model_copy(update={"local": still}), scaffold.Config(), shared, state)
    np.testing.assert_allclose(update.state["control"], same.state["control"], atol=1e-7)
    change = update.upload["control_change"]
    np.testing.assert_array_equal(change, update.state["control"] - state["control"])
    # The steps themselves do not depend on the option.
    other = train(config, scaffold.Config(option=2), shared, state)
    np.testing.assert_array_equal(update.upload["params"], other.upload["params"])
    assert not np.array_equal(update.state["control"], other.state["control"])


def test_one_client_alone_is_sgd(small: ExperimentConfig) -> None:
    # With one client c = c_i after every round, and before the first both are zero.
    config, algorithm = sgd(small), scaffold.Algorithm(scaffold.Config())
    server, state = start(algorithm, params_of(config)), dict[str, FloatVector]()
    plain = server["params"]
    for _ in range(2):
        update = train(config, algorithm.config, server, state)
        state = update.state
        result = algorithm.aggregate([update.upload], [1.0], server, ALONE).vectors
        server = algorithm.server_step(server, result, ALONE)
        plain = train(config, fedavg.Config(), {"params": plain}, {}).upload["params"]
        np.testing.assert_allclose(server["control"], state["control"], atol=1e-7)
        np.testing.assert_allclose(server["params"], plain, atol=1e-6)


def test_steps_that_overflow_change_no_state(
    small: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", partial(make, init_scale=2.0**100))
    local = small.local.model_copy(update={"precision": "fp16", "steps": 3})
    config = small.model_copy(update={"local": local})
    x = params_of(config)
    update = train(config, scaffold.Config(), {"params": x, "control": np.zeros_like(x)}, {})
    np.testing.assert_array_equal(update.upload["params"], x)
    assert not update.state["control"].any()


def test_the_servers_control_moves_by_the_share_of_clients_that_trained() -> None:
    algorithm = scaffold.Algorithm(scaffold.Config(server_lr=0.5))
    server = {"params": np.float32([1.0]), "control": np.float32([0.2])}
    uploads = [
        {"params": np.float32([2.0]), "control_change": np.float32([0.4])},
        {"params": np.float32([4.0]), "control_change": np.float32([0.8])},
    ]
    result = algorithm.aggregate(uploads, [0.5, 0.5], server, ALONE).vectors
    after = algorithm.server_step(
        server, result, Round(1, 3, num_clients=8, num_sampled=2, tensors=())
    )
    # x + .5 * (3 - 1) = 2; c + 2 / 8 * .6 = .35.
    assert after["params"] == pytest.approx([2.0])
    assert after["control"] == pytest.approx([0.35])


def test_no_pull_is_fedavg_to_the_bit_and_a_pull_is_not(small: ExperimentConfig) -> None:
    shared = {"params": params_of(small)}
    plain, none, some = (
        train(small, algorithm, shared, {}).upload["params"]
        for algorithm in (fedavg.Config(), fedprox.Config(mu=0), fedprox.Config(mu=1.0))
    )
    assert plain.tobytes() == none.tobytes()
    start_at = shared["params"]
    assert 0 < np.linalg.norm(some - start_at) < np.linalg.norm(plain - start_at)


def test_effective_steps_by_closed_forms(small: ExperimentConfig) -> None:
    plain = sgd(small).local
    assert effective_steps(plain, 0, [0.1] * 5) == pytest.approx(5)
    # Momentum r (Wang et al., Section 4): (K - r (1 - r^K) / (1 - r)) / (1 - r).
    momentum = plain.model_copy(update={"momentum": 0.5})
    assert effective_steps(momentum, 0, [0.1] * 5) == pytest.approx((5 - (1 - 0.5**5)) / 0.5)
    # Proximal: (1 - (1 - eta mu)^K) / (eta mu).
    assert effective_steps(plain, 2, [0.1] * 5) == pytest.approx((1 - 0.8**5) / 0.2)
    assert effective_steps(small.local, 0, [0.1] * 5) == 5
