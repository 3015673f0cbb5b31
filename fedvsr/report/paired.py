"""Differences between methods over the same seeds and clips, with confidence intervals.

A difference is taken between two runs with the same seed on one clip, each in its last evaluated
round. The clips of a test set share a run and the seeds share the clips, so the differences are not
independent observations. Two intervals are given, named by what varies:

- over seeds, from one mean over clips per seed: what another seed would give on these clips;
- over clips, from one mean over seeds per clip: what similar clips would give with these seeds.

Both are Student's t intervals of paired differences, because a bootstrap of the usual three or four
values is too narrow. They are not adjusted for the number of comparisons.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import pandas as pd

from fedvsr.errors import UserError
from fedvsr.report.gather import (
    GROUP,
    VARIANTS,
    Gathered,
    last_scores,
    method_order,
    ordered,
)

CONFIDENCE = 0.95
COLUMNS = [
    *GROUP,
    "metric",
    "method",
    "reference",
    "num_seeds",
    "num_clips",
    "difference",
    "seeds_low",
    "seeds_high",
    "clips_low",
    "clips_high",
]


def paired_differences(gathered: Gathered) -> pd.DataFrame:
    """Every method minus FedAvg, and FedVSR minus every method of another algorithm; each once.

    Returns:
        A row of `COLUMNS` per network, heterogeneity, test set, metric and pair: `difference` is
        the mean of `method - reference` over the seeds and clips that both have; an interval's
        ends are null with fewer than two seeds, or clips. Only finished runs count.

    Raises:
        UserError: scipy is not installed.
    """
    scores = last_scores(gathered)
    scores = scores[scores["status"] == "finished"]
    rows = []
    for model, heterogeneity, testset in product(
        ordered(scores["model"], "model"),
        ordered(scores["heterogeneity"], "heterogeneity"),
        ordered(scores["testset"], "testset"),
    ):
        selected = scores[
            (scores["model"] == model)
            & (scores["heterogeneity"] == heterogeneity)
            & (scores["testset"] == testset)
        ]
        for (method, reference), metric in product(_pairs(selected), gathered.metrics):
            ours, theirs = (
                selected[selected["method"] == name].set_index(["seed", "clip_id"])[metric]
                for name in (method, reference)
            )
            differences = (ours - theirs).dropna()
            if differences.empty:
                continue
            over_seeds = interval(differences.groupby("seed").mean())
            over_clips = interval(differences.groupby("clip_id").mean())
            seeds, clips = (
                differences.index.unique(level=name) for name in differences.index.names
            )
            labels = [model, heterogeneity, testset, metric, method, reference]
            counts = [len(seeds), len(clips)]
            rows.append([*labels, *counts, differences.mean(), *over_seeds, *over_clips])
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(scores: pd.DataFrame) -> Iterator[tuple[str, str]]:
    methods = method_order(scores)
    algorithm = dict(zip(scores["method"], scores["algorithm"], strict=True))
    references = [m for m in methods if algorithm[m] == "fedavg"]
    ours = [m for m in methods if algorithm[m] in VARIANTS]
    seen = set[frozenset[str]]()
    # Each pair once: FedVSR minus FedAvg is not repeated as FedAvg minus FedVSR.
    for subjects, others in ((methods, references), (ours, methods)):
        for reference in others:
            for subject in subjects:
                pair = frozenset((subject, reference))
                # A sweep of FedVSR's settings has too many pairs of them to read.
                same = others is methods and algorithm[reference] == algorithm[subject]
                if len(pair) == 2 and not same and pair not in seen:
                    seen.add(pair)
                    yield subject, reference


def interval(values: pd.Series[float]) -> tuple[float | None, float | None]:
    """Student's t interval of the mean of `values`; None twice for a single value."""
    try:
        from scipy.stats import t
    except ImportError:
        raise UserError("paired differences need scipy: pip install 'fedvsr[report]'") from None

    if len(values) < 2:
        return None, None
    mean = float(values.mean())
    half = float(t.ppf((1 + CONFIDENCE) / 2, df=len(values) - 1) * values.sem())
    return mean - half, mean + half
