"""Tested differences; expected numbers are derived in comments, or scipy's for the same test."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedvsr import load_results
from fedvsr.report.effects import (
    Pair,
    bootstrap,
    difference_table,
    effect,
    effects,
    holm,
    judged,
    with_fedavg,
)
from fedvsr.report.gather import Gathered, gather, last_scores
from tests.unit.report.synthetic import write_run

stats = pytest.importorskip("scipy.stats", reason="needs scipy (extra report)")


def gathered(tmp_path: Path, leads: dict[str, list[float]]) -> Gathered:
    """Runs of seeds 1, 2, ... of each method, `lead` dB above 30, and 5 dB higher on clip b."""
    for algorithm, values in leads.items():
        for seed, lead in enumerate(values, 1):
            write_run(
                tmp_path, f"{algorithm}-{seed}", algorithm=algorithm, seed=seed,
                psnr_db=lambda r, clip, base=30 + lead: base + 5 * (clip == "b"),
            )  # fmt: skip
    return gather(load_results(tmp_path))


def test_holms_adjustment() -> None:
    # Sorted: 0.01 * 4 = 0.04, 0.02 * 3 = 0.06, 0.03 * 2 = 0.06, 0.04 * 1 raised to 0.06.
    assert holm(np.array([0.03, 0.01, 0.04, 0.02])).tolist() == pytest.approx(
        [0.06, 0.04, 0.06, 0.06]
    )
    # Those that are missing do not count, and nothing exceeds 1.
    assert holm(np.array([0.6, np.nan, 0.7])).tolist() == pytest.approx([1, np.nan, 1], nan_ok=True)


def test_a_comparison_by_hand() -> None:
    # Seeds' means are 1, 2, 3: mean 2, deviation 1, standard error 1 / sqrt(3) = 0.57735.
    differences = np.array([[0.0, 2.0], [1.0, 3.0], [2.0, 4.0]])
    row = effect(differences, bound=5)
    assert (row["num_seeds"], row["num_clips"]) == (3, 2)
    assert (row["mean"], row["std"]) == pytest.approx((2, 1))
    # t(0.975, 2) = 4.302653.
    half = 4.302653 / 3**0.5
    assert (row["low"], row["high"]) == pytest.approx((2 - half, 2 + half), abs=1e-5)
    # t = 2 / 0.57735 = 3.4641; for 2 degrees of freedom P(T > t) = (1 - t / sqrt(2 + t^2)) / 2.
    assert row["p"] == pytest.approx(1 - 12**0.5 / 14**0.5)
    # The nearer bound is 3 above the mean: t = 3 sqrt(3), one-sided.
    assert row["p_equivalent"] == pytest.approx((1 - 27**0.5 / 29**0.5) / 2)
    assert row["p"] == pytest.approx(stats.ttest_rel([2, 4, 6], [1, 2, 3]).pvalue)


def test_the_bootstrap_draws_seeds_and_clips() -> None:
    # Clips do not differ: of 2 seeds, both draws are the lower one in a quarter of the resamples.
    assert bootstrap(np.array([[1.0, 1.0], [3.0, 3.0]])) == (1, 3)
    # Seeds do not differ, clips do: an interval over seeds alone would have no length.
    assert bootstrap(np.array([[1.0, 3.0], [1.0, 3.0]])) == (1, 3)
    # With many seeds it is the normal distribution's: 1.96 / sqrt(400) = 0.098 on either side.
    many = np.random.default_rng(1).normal(size=(400, 1))
    low, high = bootstrap(many)
    assert (high - low) / 2 == pytest.approx(0.098 * many.std(), rel=0.05)
    assert bootstrap(many) == (low, high), "the same numbers give the same interval"


@pytest.mark.parametrize(
    ("seeds", "verdict"),
    [
        ([1.0, 1.1, 1.2], "higher"),
        ([-1.0, -1.1, -1.2], "lower"),
        ([0.020, 0.021, 0.022], "higher, within the bound"),
        ([-0.001, 0.0, 0.001], "equivalent"),
        ([-1.0, 0.0, 1.5], "undecided"),
        # No spread, as of methods that compute the same.
        ([0.0, 0.0, 0.0], "equivalent"),
        ([0.05, 0.05, 0.05], "higher"),
    ],
)
def test_verdicts(seeds: list[float], verdict: str) -> None:
    table = judged([effect(np.array(seeds)[:, None], bound=0.05)])
    assert table["verdict"].tolist() == [verdict]


def test_verdicts_are_of_adjusted_p_values() -> None:
    # t = 0.02 / (0.001 / sqrt(3)) = 34.64: p = 1 - 34.64 / sqrt(2 + 1200) = 8.32e-4.
    row = effect(np.array([[0.019], [0.020], [0.021]]), bound=0.05)
    assert row["p"] == pytest.approx(8.32e-4, rel=1e-3)
    alone, family = judged([row]), judged([row] * 61)
    assert alone["verdict"][0] == "higher, within the bound"
    assert family["p_holm"][0] == pytest.approx(61 * row["p"])
    assert set(family["verdict"]) == {"equivalent"}, "p_equivalent is 1.85e-4"


def test_pairs_share_seeds_and_clips(tmp_path: Path) -> None:
    runs = gathered(
        tmp_path,
        {"fedavg": [0, 10, 20], "f_gla": [1], "fedvsr": [0.1, 10.2, 20.3], "local": [-1, -1]},
    )
    pairs = with_fedavg(runs)
    # The bounds do not compete.
    assert [(pair.method, pair.reference) for pair in pairs] == [
        ("F-GLA", "FedAvg"), ("FedVSR", "FedAvg"),
    ]  # fmt: skip
    table = difference_table(last_scores(runs), pairs[1])
    assert table.to_numpy() == pytest.approx(np.array([[0.1, 0.1], [0.2, 0.2], [0.3, 0.3]]))
    tested = effects(runs)
    assert tested["method"].tolist() == ["FedVSR"], "one seed says nothing of others"
    assert tested["mean"][0] == pytest.approx(0.2)


def test_unfinished_runs_do_not_count(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, f"avg-{seed}", seed=seed)
        write_run(tmp_path, f"vsr-{seed}", algorithm="fedvsr", seed=seed, done=1, status="running")
    assert effects(gather(load_results(tmp_path))).empty


def test_pairs_of_ones_own(tmp_path: Path) -> None:
    runs = gathered(tmp_path, {"fedavg": [0, 0], "f_gla": [1, 2], "fedvsr": [3, 6]})
    group = runs.scores[["model", "heterogeneity", "testset"]].iloc[0]
    tested = effects(runs, [Pair(*group, "FedVSR", "F-GLA")], bound=0.1)
    assert tested[["mean", "bound"]].to_numpy().tolist() == [[3, 0.1]]
    assert pd.isna(tested["p_holm"]).sum() == 0
