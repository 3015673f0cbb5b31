"""Server-side methods, with numbers derived by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from fedvsr import algorithms
from fedvsr.algorithms import _robust, krum
from fedvsr.algorithms._robust import sorted_rows
from fedvsr.algorithms.base import FedAvg, start
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.messages import ClientReport, Round, Vectors

ROUND = Round(round_idx=1, num_rounds=10, num_clients=8, num_sampled=4, tensors=())


def build(name: str, **settings: Any) -> FedAvg:
    return algorithms.build(load("fedvsr.algorithms", name).Config(**settings))


def report(num_samples: int = 1, **more: Any) -> ClientReport:
    return ClientReport(0, 1, num_samples, 1, 1.0, 1.0, 0.0, **more)


def vectors(*rows: list[float]) -> list[Vectors]:
    return [{"params": np.array(row, np.float32)} for row in rows]


def two_steps(algorithm: FedAvg) -> list[float]:
    """Two rounds whose averages lie 0.1 above the global parameters, which start at 0."""
    server = start(algorithm, np.zeros(1, np.float32))
    places = []
    for _ in range(2):
        average = {"params": server["params"] + np.float32(0.1)}
        server = algorithm.server_step(server, average, ROUND)
        places.append(float(server["params"][0]))
    return places


def test_fedavgm() -> None:
    # v = .1, w = .5 * .1 = .05; v = .9 * .1 + .1 = .19, w = .05 + .095.
    assert two_steps(build("fedavgm", beta=0.9, server_lr=0.5)) == pytest.approx([0.05, 0.145])


def test_fedadagrad() -> None:
    # m = .01, v = tau^2 + .01 = .02; m = .019, v = .03.
    first = 0.01 / (math.sqrt(0.02) + 0.1)
    expected = [first, first + 0.019 / (math.sqrt(0.03) + 0.1)]
    assert two_steps(build("fedadagrad", server_lr=1, tau=0.1)) == pytest.approx(expected)


def test_fedadam() -> None:
    # tau^2 = .04, b2 = .5: v = .02 + .005, then .0125 + .005.
    first = 0.01 / (math.sqrt(0.025) + 0.2)
    expected = [first, first + 0.019 / (math.sqrt(0.0175) + 0.2)]
    assert two_steps(build("fedadam", server_lr=1, tau=0.2, beta_2=0.5)) == pytest.approx(expected)


def test_fedyogi() -> None:
    # tau^2 = .0025, b2 = .5, D^2 = .01: v = .0025 + .005, as v < D^2, then .0125.
    first = 0.01 / (math.sqrt(0.0075) + 0.05)
    expected = [first, first + 0.019 / (math.sqrt(0.0125) + 0.05)]
    assert two_steps(build("fedyogi", server_lr=1, tau=0.05, beta_2=0.5)) == pytest.approx(expected)
    algorithm: Any = build("fedyogi", beta_2=0.5)
    shrunk = algorithm.second_moment(np.float32([0.04]), np.float32([0.01]))
    assert shrunk == pytest.approx([0.035])


def test_fednova() -> None:
    # Equal samples, 1 and 3 effective steps: tau_eff = 2, weights 2 * .5 / 1 and 2 * .5 / 3.
    algorithm = build("fednova")
    weights = algorithm.weights([report(effective_steps=1.0), report(effective_steps=3.0)], 10)
    assert weights == pytest.approx([1, 1 / 3])
    # From w = 2 to 3 in one step and to 5 in three: 2 + 1 * 1 + 3 / 3 = 4.
    server = vectors([2.0])[0]
    result = algorithm.aggregate(vectors([3.0], [5.0]), weights, server, ROUND)
    assert result.vectors["params"] == pytest.approx([4])


def test_loss_aware_weights_can_be_combined_with_other_servers() -> None:
    # Losses 1 and 3 in the first of 10 rounds, alpha 1 without decay: 3/4 and 1/4.
    reports = [
        ClientReport(i, 1, 1, 1, loss, loss, 0.0, effective_steps=steps)
        for i, (loss, steps) in enumerate(((1.0, 1.0), (3.0, 3.0)))
    ]
    for name in ("fedadam", "fedyogi", "fedadagrad", "fedavgm", "scaffold", "fedprox", "fisher"):
        weights = build(name, weights="loss_aware", decay="none").weights(reports, 10)
        assert weights == pytest.approx([3 / 4, 1 / 4]), name
    # FedNova: tau_eff = 3/4 * 1 + 1/4 * 3 = 1.5; 1.5 * .75 / 1 and 1.5 * .25 / 3.
    weights = build("fednova", weights="loss_aware", decay="none").weights(reports, 10)
    assert weights == pytest.approx([1.125, 0.125])
    # Methods that weigh clients themselves refuse them.
    for name in ("qffl", "krum", "fedmedian", "trimmed_mean"):
        with pytest.raises(ValueError, match="weights"):
            build(name, weights="loss_aware")


def test_qffl() -> None:
    # q = 1, L = 2, the mean of 1.5 and 2.5. Losses 1 and 3, |w - w_k| = 1 and 2:
    # F^q L = 2, 6; h = 1 * 4 * 1 + 2 = 6 and 1 * 4 * 4 + 6 = 22; weights 2 / 28 and 6 / 28.
    reports = [
        report(first_loss=1.0, lipschitz=1.5, update_norm=1.0),
        report(first_loss=3.0, lipschitz=2.5, update_norm=2.0),
    ]
    assert build("qffl").weights(reports, 10) == pytest.approx([2 / 28, 6 / 28])
    assert build("qffl", q=0).weights(reports, 10) == pytest.approx([0.5, 0.5])
    # q = 2, L = 1: F^q L = 1, 9; h = 2 * 1 * 1 + 1 = 3 and 2 * 3 * 4 + 9 = 33.
    weights = build("qffl", q=2, lipschitz=1).weights(reports, 10)
    assert weights == pytest.approx([1 / 36, 9 / 36])


def test_median_and_trimmed_mean_ignore_a_liar() -> None:
    uploads = vectors([1, 5], [2, 6], [3, 7], [1e9, -1e9])
    server = vectors([0, 0])[0]
    result = build("fedmedian").aggregate(uploads, [0.25] * 4, server, ROUND)
    assert result.vectors["params"].tolist() == [2.5, 5.5]
    assert result.weights is None
    # A quarter of four at either end: (2 + 3) / 2 and (5 + 6) / 2.
    result = build("trimmed_mean", beta=0.25).aggregate(uploads, [0.25] * 4, server, ROUND)
    assert result.vectors["params"].tolist() == [2.5, 5.5]


def test_medians_and_means_of_odd_numbers() -> None:
    uploads = vectors([5], [1], [9], [2], [4])
    server = vectors([0])[0]
    result = build("fedmedian").aggregate(uploads, [0.2] * 5, server, ROUND)
    assert result.vectors["params"].tolist() == [4]
    # floor(.4 * 5) = 2 at either end leave 4; floor(.3 * 5) = 1 leaves (2 + 4 + 5) / 3.
    for beta, mean in ((0.4, 4), (0.3, 11 / 3)):
        result = build("trimmed_mean", beta=beta).aggregate(uploads, [0.2] * 5, server, ROUND)
        assert result.vectors["params"] == pytest.approx([mean])


def test_chunks_give_the_same_as_whole_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    # Ten coordinates by fours: the last chunk is short.
    for module in (_robust, krum):
        monkeypatch.setattr(module, "CHUNK", 4)
    rows = np.random.default_rng(0).random((5, 10), np.float32)
    rows[3] = rows[:3].mean(axis=0)
    # The last chunk alone would lead to another choice.
    rows[:, :8] *= 10
    rows[3, 8:] += 1
    expected = {
        "fedmedian": np.median(rows, axis=0),
        "trimmed_mean": np.sort(rows, axis=0)[1:4].mean(axis=0),
        # The mean of three is the nearest of all to its two neighbours.
        "krum": rows[3],
    }
    for name, vector in expected.items():
        uploads = [{"params": row} for row in rows]
        result = build(name).aggregate(uploads, [0.2] * 5, uploads[0], ROUND)
        np.testing.assert_allclose(result.vectors["params"], vector, rtol=1e-6)


@pytest.mark.parametrize("count", [1, 2, 5, 16, 17])
def test_sorted_rows_sorts_columns(count: int) -> None:
    values = np.random.default_rng(count).random((count, 500), dtype=np.float32)
    np.testing.assert_array_equal(sorted_rows(values.copy()), np.sort(values, axis=0))


def test_krum_selects_the_closest() -> None:
    # Scores with f = 1 of 5 sum the 2 nearest: of 0, 1, 2, 2.5, 100 they are 5, 2, 1.25, 2.5, big.
    uploads = vectors([0], [1], [2], [2.5], [100])
    server = vectors([0])[0]
    result = build("krum").aggregate(uploads, [0.2] * 5, server, ROUND)
    assert result.vectors["params"].tolist() == [2]
    assert result.weights == [0, 0, 1, 0, 0]
    result = build("krum", num_selected=2).aggregate(uploads, [0.2] * 5, server, ROUND)
    assert result.vectors["params"].tolist() == [1.5]
    with pytest.raises(UserError, match=r"need at least 5 clients a round, not 4; raise"):
        build("krum").aggregate(uploads[:4], [0.25] * 4, server, ROUND)


def test_a_large_mu_gives_a_note() -> None:
    config: Any = build("fedprox").config
    assert config.mu == 1e-3
    assert config.notes() == ()
    assert build("fedadam", mu=0.01).config.notes() == ()
    assert "mu = 0.011 is large" in build("fedadam", mu=0.011).config.notes()[0]
    assert "mu = 0.1 is large" in build("fedprox", mu=0.1).config.notes()[0]
