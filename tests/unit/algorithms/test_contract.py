"""What every algorithm must keep. A new file in the folder is tested the moment it exists."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from fedvsr import algorithms
from fedvsr.algorithms._base import FedAvg
from fedvsr.lookup import load, names
from fedvsr.losses import charbonnier
from fedvsr.messages import ClientReport


@pytest.fixture(params=names("fedvsr.algorithms"))
def algorithm(request: pytest.FixtureRequest) -> FedAvg:
    return algorithms.build(load("fedvsr.algorithms", request.param).Config())


def report(client_id: int, loss: float, num_samples: int = 4) -> ClientReport:
    return ClientReport(client_id, 1, num_samples, 2, loss, loss, 0.1)


def test_pickles(algorithm: FedAvg) -> None:
    copy = pickle.loads(pickle.dumps(algorithm))
    assert copy.config == algorithm.config


def test_weights_sum_to_one_and_follow_their_client(algorithm: FedAvg) -> None:
    reports = [report(0, 0.3, 4), report(1, 0.1, 8), report(2, 0.2, 2)]
    weights = algorithm.weights(reports, 10)
    assert sum(weights) == pytest.approx(1)
    assert algorithm.weights(reports[::-1], 10) == pytest.approx(weights[::-1])


def test_equal_clients_weigh_the_same_and_give_their_own_vector(algorithm: FedAvg) -> None:
    weights = algorithm.weights([report(i, 0.2) for i in range(4)], 10)
    assert weights == pytest.approx([0.25] * 4)
    vector = np.random.default_rng(0).standard_normal(100).astype(np.float32)
    np.testing.assert_allclose(algorithm.aggregate([vector] * 4, weights), vector, rtol=1e-6)


def test_aggregate_reads_only(algorithm: FedAvg) -> None:
    vectors = [np.full(8, float(i), np.float32) for i in range(3)]
    for vector in vectors:
        vector.flags.writeable = False
    result = algorithm.aggregate(iter(vectors), [0.5, 0.25, 0.25])
    np.testing.assert_allclose(result, 0.75)


def test_descending_the_local_loss_lowers_it(algorithm: FedAvg) -> None:
    torch.manual_seed(0)
    gt = torch.rand(1, 2, 3, 8, 8)
    sr = torch.rand(1, 2, 3, 8, 8, requires_grad=True)

    def loss() -> torch.Tensor:
        return algorithm.local_loss(charbonnier(sr, gt), sr, gt)

    before = loss()
    (slope,) = torch.autograd.grad(before, sr)
    with torch.no_grad():
        sr -= 5 * slope
    assert loss() < before
