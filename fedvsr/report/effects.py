"""How large differences between methods are, tested over seeds: intervals, p-values, equivalence.

A pair's difference on one clip is taken between two runs of the same seed, each in its last round.
D is the table of these, seeds by clips; a seed's difference is the mean of its row.

- `mean`: the mean of D. `low`, `high`: Student's t interval of the seeds' differences.
- `boot_low`, `boot_high`: percentile interval over resampled seeds and clips. The same clips are in
  every seed, so they are drawn independently of the seeds.
- `p`: two-sided paired t test of no difference. `p_holm` adjusts it for all pairs of the table
  (Holm 1979).
- `p_equivalent`: two one-sided t tests (Schuirmann 1987), of a difference of at least `bound` in
  either direction. `p_equivalent_holm` is adjusted too.
- `verdict`: `higher` or `lower` if `p_holm` is below 0.05, with `within the bound` if
  `p_equivalent_holm` also is; `equivalent` if only the latter is; else `undecided`.

A pair with fewer than two seeds is left out: nothing can be said of other seeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pandas as pd

from fedvsr.errors import UserError
from fedvsr.report.gather import BOUNDS, GROUP, Gathered, last_scores, method_order, ordered

BOUND_DB = 0.05
"""Difference of PSNR up to which methods count as equivalent."""
METRIC = "psnr_db"
SIGNIFICANCE = 0.05
COLUMNS = [
    *GROUP,
    "method",
    "reference",
    "num_seeds",
    "num_clips",
    "mean",
    "std",
    "low",
    "high",
    "boot_low",
    "boot_high",
    "p",
    "p_holm",
    "p_equivalent",
    "p_equivalent_holm",
    "bound",
    "verdict",
]
_RESAMPLES = 10_000

Differences = npt.NDArray[np.float64]


class Pair(NamedTuple):
    """Two cells of a table of scores, whose difference is `method - reference`."""

    model: str
    heterogeneity: str
    testset: str
    method: str
    reference: str


def with_fedavg(gathered: Gathered) -> list[Pair]:
    """Every federated method minus FedAvg; none where FedAvg was run with several settings."""
    pairs = list[Pair]()
    kinds = (ordered(gathered.scores[kind], kind) for kind in GROUP)
    for model, heterogeneity, testset in product(*kinds):
        scores = _of_group(gathered.scores, (model, heterogeneity, testset))
        algorithm = dict(zip(scores["method"], scores["algorithm"], strict=True))
        references = [method for method in algorithm if algorithm[method] == "fedavg"]
        if len(references) == 1:
            left_out = {references[0], *(m for m in algorithm if algorithm[m] in BOUNDS)}
            others = [method for method in method_order(scores) if method not in left_out]
            pairs += [
                Pair(model, heterogeneity, testset, method, references[0]) for method in others
            ]
    return pairs


def effects(
    gathered: Gathered, pairs: Iterable[Pair] | None = None, bound: float = BOUND_DB
) -> pd.DataFrame:
    """A row of `COLUMNS` per pair that shares two seeds or more; in dB of PSNR.

    Args:
        gathered: the runs; only finished ones count.
        pairs: what is compared, which is also what the p-values are adjusted for. Default: every
            federated method minus FedAvg.
        bound: the largest difference, in dB, that counts as equivalent.

    Raises:
        UserError: scipy is not installed.
    """
    if METRIC not in gathered.metrics:
        return pd.DataFrame(columns=COLUMNS)
    scores = last_scores(gathered)
    scores = scores[scores["status"] == "finished"]
    rows = list[dict[str, Any]]()
    for pair in with_fedavg(gathered) if pairs is None else pairs:
        table = difference_table(scores, pair)
        if table.size and len(table) > 1:
            rows.append({**pair._asdict(), **effect(table.to_numpy(), bound)})
    return judged(rows)


def judged(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Effects of one family of comparisons, with adjusted p-values and verdicts."""
    table = pd.DataFrame(rows, columns=COLUMNS)
    for name in ("p", "p_equivalent"):
        table[f"{name}_holm"] = holm(table[name].to_numpy(float))
    table["verdict"] = [_verdict(row) for row in table.to_dict("records")]
    return table


def difference_table(scores: pd.DataFrame, pair: Pair) -> pd.DataFrame:
    """`method - reference` by seed and clip, for the seeds in which both have every shared clip.

    Args:
        scores: those of finished runs in their last round.
        pair: what is compared.
    """
    group = _of_group(scores, pair[: len(GROUP)])
    ours, theirs = (
        group[group["method"] == method].pivot_table(METRIC, "seed", "clip_id")
        for method in (pair.method, pair.reference)
    )
    return (ours - theirs).dropna(axis="columns", how="all").dropna()


def effect(differences: Differences, bound: float) -> dict[str, Any]:
    """The columns of one comparison that depend on no other.

    Args:
        differences: D, (seeds, clips), of two seeds or more.
        bound: the largest difference that counts as equivalent.

    Raises:
        UserError: scipy is not installed.
    """
    by_seed = differences.mean(axis=1)
    num_seeds, num_clips = differences.shape
    boot_low, boot_high = bootstrap(differences)
    low, high = _t_interval(by_seed)
    return {
        "num_seeds": num_seeds,
        "num_clips": num_clips,
        "mean": by_seed.mean(),
        "std": by_seed.std(ddof=1),
        "low": low,
        "high": high,
        "boot_low": boot_low,
        "boot_high": boot_high,
        "p": _p_value(by_seed, 0.0, "two-sided"),
        "p_equivalent": max(_p_value(by_seed, -bound, "greater"), _p_value(by_seed, bound, "less")),
        "bound": bound,
    }


def bootstrap(differences: Differences, resamples: int = _RESAMPLES) -> tuple[float, float]:
    """The 95 % percentile interval of the mean over resampled seeds and clips, (seeds, clips)."""
    rng = np.random.default_rng(0)
    num_seeds, num_clips = differences.shape
    # How often each seed and clip is drawn; equal to drawing them with replacement.
    seeds, clips = (
        rng.multinomial(count, np.full(count, 1 / count), size=resamples) / count
        for count in (num_seeds, num_clips)
    )
    means = np.einsum("rs,sc,rc->r", seeds, differences, clips, optimize=True)
    low, high = np.quantile(means, [SIGNIFICANCE / 2, 1 - SIGNIFICANCE / 2])
    return float(low), float(high)


def holm(p_values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Holm's step-down adjustment of p-values; null ones stay null and do not count."""
    adjusted = np.full(len(p_values), np.nan)
    known = np.flatnonzero(~np.isnan(p_values))
    order = known[np.argsort(p_values[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(1.0, np.maximum.accumulate(factors * p_values[order]))
    return adjusted


def _of_group(scores: pd.DataFrame, labels: Sequence[str]) -> pd.DataFrame:
    """The scores of a network, heterogeneity and test set."""
    return scores[(scores[GROUP] == list(labels)).all(axis=1)]


def _t_interval(values: Differences) -> tuple[float, float]:
    half = _scipy_stats().t.ppf(1 - SIGNIFICANCE / 2, len(values) - 1)
    half *= values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _p_value(values: Differences, mean: float, alternative: str) -> float:
    """P-value of a one-sample t test; for equal values, 0 or 1, or 1 if they equal `mean`."""
    if values.std() > 1e-12 * max(1.0, np.abs(values).max()):
        test = _scipy_stats().ttest_1samp(values, mean, alternative=alternative)
        return float(test.pvalue)
    above = values.mean() - mean
    holds = {"two-sided": above != 0, "greater": above > 0, "less": above < 0}[alternative]
    return 0.0 if holds else 1.0


def _verdict(row: dict[Any, Any]) -> str:
    differs = row["p_holm"] < SIGNIFICANCE
    is_within = row["p_equivalent_holm"] < SIGNIFICANCE
    if differs:
        side = "higher" if row["mean"] > 0 else "lower"
        return f"{side}, within the bound" if is_within else side
    return "equivalent" if is_within else "undecided"


def _scipy_stats() -> Any:
    try:
        from scipy import stats
    except ImportError:
        raise UserError("effects need scipy: pip install 'fedvsr[report]'") from None
    return stats
