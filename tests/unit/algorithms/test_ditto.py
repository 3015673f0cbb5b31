"""Ditto: each client's own network beside the global one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fedvsr.algorithms import ditto, fedavg
from fedvsr.algorithms.base import AlgorithmConfig, LocalRound
from fedvsr.config import ExperimentConfig, load_config
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.params import flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from fedvsr.training.updates import UpdateConfig
from tests.conftest import MakeOnce
from tests.unit.algorithms.test_kept import small_clip
from tests.unit.algorithms.test_parts import changed, run

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=2, seed=5)


def train(
    small: ExperimentConfig,
    config: AlgorithmConfig,
    params: np.ndarray,
    state: Vectors | None = None,
    update: UpdateConfig | None = None,
    **local: object,
) -> tuple[ClientReport, ClientUpdate]:
    clips = prepare_data(small, lambda *_: None).train[:1]
    changed = small.local.model_copy(update=local)
    trainer = LocalTrainer(small.model, config, changed, update or small.update)
    return trainer.train(TASK, {"params": params}, state or {}, clips)


@pytest.fixture
def start(small: ExperimentConfig) -> np.ndarray:
    return LocalTrainer(small.model, fedavg.Config(), small.local).parameters.values()


def test_the_pull_by_hand() -> None:
    """w = (3, 1), w_t = (1, 1), lambda = 0.5: the gradient is (1, 0), the term 0.25 * 4."""
    algorithm = ditto.Algorithm(ditto.Config(lambda_own=0.5))
    for beside, gradient, term in ((True, [1.0, 0.0], 1.0), (False, [0.0, 0.0], 0.0)):
        parameter = torch.nn.Parameter(torch.tensor([3.0, 1.0]))
        parameter.grad = torch.zeros(2)
        local = LocalRound([parameter], {"params": [torch.ones(2)]}, {}, {}, 1, 1, beside)
        assert algorithm.correct_gradients(local, 0) == term
        assert parameter.grad.tolist() == gradient


def test_the_global_network_has_the_bits_of_fedavg(
    small: ExperimentConfig, start: np.ndarray
) -> None:
    state: Vectors = {}
    for params in (start, start + np.float32(1e-3)):
        plain, expected = train(small, fedavg.Config(mu=1e-3), params)
        report, update = train(small, ditto.Config(mu=1e-3), params, state)
        assert set(update.upload) == {"params"}
        assert np.array_equal(update.upload["params"], expected.upload["params"])
        assert (report.loss, report.update_norm) == (plain.loss, plain.update_norm)
        assert report.upload_bytes == plain.upload_bytes
        state = update.state
        assert set(state) == {"personal"}
        assert not np.array_equal(state["personal"], update.upload["params"])


def test_a_step_of_the_own_network_by_hand(small: ExperimentConfig, start: np.ndarray) -> None:
    """By SGD, `v - lr (g(v) + lambda (v - w_t))`: FedAvg's step from v, and the pull."""
    lr, pull = 0.1, 0.5
    own = start + np.float32(0.01)
    sgd = {"steps": 1, "optimizer": "sgd", "lr": lr, "momentum": 0.0}
    _, plain = train(small, fedavg.Config(), own, **sgd)
    config = ditto.Config(lambda_own=pull)
    _, update = train(small, config, start, {"personal": own}, **sgd)
    expected = plain.upload["params"] - lr * pull * (own - start)
    np.testing.assert_allclose(update.state["personal"], expected, atol=1e-6)
    assert np.abs(lr * pull * (own - start)).min() > 1e-4
    # Without a pull, the own network is that of a client who trains alone.
    _, alone = train(small, ditto.Config(lambda_own=0.0), start, {"personal": own}, **sgd)
    assert np.array_equal(alone.state["personal"], plain.upload["params"])


def test_clients_are_scored_with_their_own_network_once_they_have_one(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    config = changed(small, algorithm={"name": "ditto"}, evaluation={"max_frames": 1})
    done, results = run(config, tmp_path)
    rows, trained = results.evaluations, results.clients
    first = set(trained.query("round_idx == 1")["client_id"])
    scores = rows.query("round_idx == 1").groupby("client_id")["psnr_db"].mean()
    others = scores[~scores.index.isin(first)]
    # Those that have not trained have the global network, which has moved.
    assert others.nunique() == 1
    before = rows.query("round_idx == 0").groupby("client_id")["psnr_db"].mean()
    assert others.iloc[0] not in before.tolist()
    assert scores.nunique() == 1 + len(first)
    assert len(list((done.folder / "clients").iterdir())) == config.data.num_clients


def test_a_network_that_is_not_finite_is_refused_or_left_out(
    small: ExperimentConfig, start: np.ndarray
) -> None:
    poisoned = {"personal": np.full_like(start, np.nan)}
    with pytest.raises(UserError, match=r"client 0 is nan in round 1"):
        train(small, ditto.Config(), start, poisoned)
    reject = UpdateConfig(reject_nonfinite=True)
    report, update = train(small, ditto.Config(), start, poisoned, reject)
    assert not report.finite
    assert (update.upload, update.state, report.upload_bytes) == ({}, {}, 0)


def test_no_part_stays_with_a_client_besides_its_network(small_yaml: Path) -> None:
    with pytest.raises(UserError, match=r"keep = \[head\] has no effect"):
        load_config(str(small_yaml), ["algorithm.name=ditto", "algorithm.keep=[head]"])


def test_a_round_of_a_papers_network(make_once: MakeOnce) -> None:
    model = load("fedvsr.models", "iart").Config(size="demo")
    local = LocalConfig(steps=1, batch_size=1, num_frames=2, crop=128, lr=1e-3)
    trainer = LocalTrainer(model, ditto.Config(), local)
    before = trainer.parameters.values()
    _, update = trainer.train(TASK, {"params": before}, {}, [small_clip(make_once)])
    assert update.state["personal"].size == flatten(trainer.network).size
    # The first step is FedAvg's, because the pull is 0 where both begin.
    assert np.array_equal(update.state["personal"], update.upload["params"])
