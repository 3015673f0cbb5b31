from __future__ import annotations

import math

import numpy as np
import pytest

from fedvsr.federation.executors import ClientOutcome
from fedvsr.federation.rounds import RoundFinished, RunState
from fedvsr.messages import ClientReport
from fedvsr.runs.rows import client_rows, round_row
from fedvsr.schemas import SCHEMAS


def finished(weights: list[float] | None, losses: list[float], lost: int) -> RoundFinished:
    """A round whose client `lost` trained for nothing."""
    reports = [
        ClientReport(i, 1, 8, 2, loss, loss, 0.5, upload_bytes=100, finite=math.isfinite(loss))
        for i, loss in enumerate(losses)
    ]
    outcomes = [ClientOutcome(r, upload_failed=r.client_id == lost) for r in reports]
    state = RunState(1, {"params": np.zeros(3, np.float32)}, {})
    return RoundFinished(state, outcomes, weights, 0.0, 0, None, 1.0, 0.1, 2.5, 4, 400)


def test_rows_say_how_far_weights_are_from_uniform() -> None:
    round_ = finished([0.75, 0.0, 0.25, 0.0], [1.0, 2.0, 3.0, math.nan], lost=1)
    row = round_row(round_, None)
    # K = 2 are aggregated. sum of (sqrt(.5) - sqrt(p))^2 = .02526 + .04289, halved, and its root.
    assert row["weights_hellinger"] == pytest.approx(0.18459, abs=1e-5)
    assert row["weights_deviation"] == pytest.approx(0.5)
    assert (row["num_sampled"], row["num_rejected"], row["num_upload_failures"]) == (4, 1, 1)
    assert row["loss"] == 2.0, "the mean of 1 and 3"
    assert row["upload_bytes"] == 400, "what was lost was sent"
    clients = client_rows(round_)
    assert [c["inverse_loss"] for c in clients] == [1, 1 / 2, pytest.approx(1 / 3), None]
    assert [c["upload_failed"] for c in clients] == [False, True, False, False]
    assert [c["rejected"] for c in clients] == [False, False, False, True]
    for name, rows in (("rounds", [row]), ("clients", clients)):
        assert {key for r in rows for key in r} <= set(SCHEMAS[name].names)


def test_weights_that_sum_to_less_count_as_shares() -> None:
    # Under noise, a short cohort's weights leave a part to the global network.
    row = round_row(finished([0.25, 0.25, 0.0], [1.0, 1.0, 1.0], lost=2), None)
    assert (row["weights_hellinger"], row["weights_deviation"]) == (0, 0)


def test_a_round_without_weights_has_no_distance() -> None:
    row = round_row(finished(None, [1.0, 1.0], lost=0), None)
    assert row.get("weights_hellinger") is row.get("weights_deviation") is None
