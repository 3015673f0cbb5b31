"""What the study can tell, by its pilot: the tables of docs/design/0024-study.md.

    python -m tests.study.power [FOLDER]

FOLDER (default: results/study-pilot) has the pilot's tables.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from scipy import integrate, stats

from fedvsr.records import load_results
from fedvsr.report.effects import BOUND_DB, SIGNIFICANCE, Pair, difference_table
from fedvsr.report.gather import GROUP, gather, last_scores, method_order
from fedvsr.report.render import number

PILOT = Path(__file__).parents[2] / "results" / "study-pilot"
NUM_SEEDS = 6
"""Seeds of the study, which are pairs of each comparison."""
NUM_COMPARISONS = 8
"""Comparisons of the first question: Holm's method divides the level of the first test by it."""
_STDS_DB = (0.005, 0.01, 0.02, 0.03, 0.05)
_WANTED = 0.8


def power(std: float, difference: float, num_pairs: int, level: float = SIGNIFICANCE) -> float:
    """Probability that the two-sided paired t test of a level finds a difference."""
    centre = difference / std * num_pairs**0.5
    limit = stats.t.ppf(1 - level / 2, num_pairs - 1)
    return float(
        stats.nct.sf(limit, num_pairs - 1, centre) + stats.nct.cdf(-limit, num_pairs - 1, centre)
    )


def power_of_equivalence(
    std: float, bound: float, num_pairs: int, level: float = SIGNIFICANCE
) -> float:
    """Probability that two one-sided tests find methods equivalent that do not differ.

    Both tests are passed if the mean is within `bound - t s / sqrt(n)` of 0, where s is the
    deviation of the sample. This integrates over s.
    """
    freedom = num_pairs - 1
    limit = stats.t.ppf(1 - level, freedom)
    scale = num_pairs**0.5 / std
    most = (bound * num_pairs**0.5 / (limit * std)) ** 2 * freedom

    def density(square: float) -> float:
        """Density of `freedom * s^2 / std^2`, times the probability of a mean within limits."""
        sample_std = std * (square / freedom) ** 0.5
        room = scale * (bound - limit * sample_std / num_pairs**0.5)
        return float((2 * stats.norm.cdf(room) - 1) * stats.chi2.pdf(square, freedom))

    # Beyond this, the density is 0 for practical purposes.
    end = min(most, stats.chi2.ppf(1 - 1e-12, freedom))
    return float(integrate.quad(density, 0, end, limit=200)[0])


def num_pairs(std: float, difference: float) -> int:
    """The least number of pairs with which a difference is found with a probability of 80 %."""
    return next(n for n in range(2, 1000) if power(std, difference, n) >= _WANTED)


def power_table() -> str:
    """By standard deviation of the paired difference, in Markdown."""
    lines = [
        "| SD (dB) | pairs for 0.02 dB | pairs for 0.05 dB | least difference, 6 pairs | "
        "first of 8 tests | equivalence, 6 pairs | first of 8 tests |",
        f"|{' --- |' * 7}",
    ]
    for std in _STDS_DB:
        cells = [f"{std:g}", str(num_pairs(std, 0.02)), str(num_pairs(std, 0.05))]
        levels = SIGNIFICANCE, SIGNIFICANCE / NUM_COMPARISONS
        cells += [f"{least_difference(std, level):.3f} dB" for level in levels]
        cells += [
            f"{power_of_equivalence(std, BOUND_DB, NUM_SEEDS, level):.0%}" for level in levels
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def least_difference(std: float, level: float) -> float:
    """The least difference, in steps of 0.001 dB, found with 80 % by as many pairs as seeds."""
    return next(
        difference
        for difference in np.arange(1, 10_000) / 1000
        if power(std, difference, NUM_SEEDS, level) >= _WANTED
    )


def pilot_table(folder: Path) -> str:
    """The scores of the pilot and its paired differences, in Markdown."""
    gathered = gather(load_results(folder))
    scores = last_scores(gathered)
    lines = ["| method | seeds | PSNR (dB) | over bicubic (dB) |", "| --- | --- | --- | --- |"]
    for method in method_order(gathered.runs):
        rows = scores[scores["method"] == method]
        psnr_db, gain_db = (
            rows["psnr_db"].mean(),
            (rows["psnr_db"] - rows["bicubic_psnr_db"]).mean(),
        )
        seeds = ", ".join(map(str, sorted(rows["seed"].unique())))
        lines.append(f"| {method} | {seeds} | {psnr_db:.2f} | {gain_db:+.2f} |")
    (group,) = scores[GROUP].drop_duplicates().itertuples(index=False, name=None)
    table = difference_table(scores, Pair(*group, "FedVSR", "FedAvg"))
    by_seed = table.mean(axis=1)
    differences = ", ".join(number(value, 4, signed=True) for value in by_seed)
    lines += [
        "",
        f"FedVSR minus FedAvg by seed: {differences} dB; standard deviation {by_seed.std():.4f} dB "
        f"({len(by_seed)} seeds).",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the tables."""
    print(pilot_table(Path(sys.argv[1]) if len(sys.argv) > 1 else PILOT), "\n", sep="\n")
    print(power_table())


if __name__ == "__main__":
    main()
