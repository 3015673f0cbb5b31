"""The comparisons of the study, fixed in docs/design/0024-study.md before its first run.

A question has a folder of tables. Its comparisons are one family, for which p-values are adjusted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import NamedTuple

import pandas as pd

from fedvsr.report.effects import BOUND_DB, Pair, difference_table, effect, effects, judged
from fedvsr.report.gather import GROUP, Gathered, display, last_scores, method_order, ordered

MIN_GAP_DB = 0.5
"""Least PSNR of centralized minus local training that leaves room for differences."""
METHODS = ("f_hifr", "f_gla", "fedvsr", "fedvsr_published")
_FEDAVG, _PUBLISHED = display("fedavg"), display("fedvsr_published")
_ONE_SAMPLE = " (local.batch_size=1, local.steps=80)"
_FOUR_SAMPLES = " (local.batch_size=4, local.steps=20)"
_LOST = " (federation.upload_failure_probability={})"


class Choice(NamedTuple):
    """Which runs of a sweep a question compares."""

    algorithms: tuple[str, ...] = ()
    """Their algorithms; empty: all."""
    partition: str = ""
    """Their `data.partition`; empty: all."""


class Whole(NamedTuple):
    """What the differences of a question are shares of."""

    name: str
    meaning: str
    measure: Callable[[Gathered], dict[str, float]]
    """It (dB), by heterogeneity, where both of its sides were run."""


@dataclass(frozen=True)
class Question:
    """A question of the study."""

    name: str
    """Folder of its tables."""
    title: str
    sweeps: dict[str, Choice]
    """The runs that it compares, by sweep."""
    compare: Callable[[Gathered], pd.DataFrame]
    """Makes the table of effects of its runs."""
    whole: Whole | None = None


def gaps(gathered: Gathered) -> pd.DataFrame:
    """PSNR of centralized minus local training, tested, by heterogeneity."""
    return effects(gathered, list(_pairs(gathered, [("centralized", "local")])), BOUND_DB)


def _difference(gathered: Gathered, method: str, reference: str) -> dict[str, float]:
    """PSNR of one method minus another (dB), by heterogeneity, where both were run."""
    table = effects(gathered, list(_pairs(gathered, [(method, reference)])))
    return dict(zip(table["heterogeneity"], table["mean"], strict=True))


def _methods(gathered: Gathered) -> pd.DataFrame:
    pairs = [(display(name), _FEDAVG) for name in METHODS]
    return effects(gathered, list(_pairs(gathered, pairs)))


def _steps(gathered: Gathered) -> pd.DataFrame:
    """The published margin, then its two parts: the steps' and the method's."""
    published, ours = _PUBLISHED + _ONE_SAMPLE, _FEDAVG + _ONE_SAMPLE
    theirs = _FEDAVG + _FOUR_SAMPLES
    pairs = [(published, theirs), (ours, theirs), (published, ours)]
    return effects(gathered, list(_pairs(gathered, pairs)))


def _failures(gathered: Gathered) -> pd.DataFrame:
    """What each method gains over FedAvg if half of the uploads fail, and how the gain changes."""
    scores = last_scores(gathered)
    scores = scores[scores["status"] == "finished"]
    rows = []
    for group, name in product(_groups(gathered), METHODS[1:]):
        lost, kept = (
            Pair(*group, display(name) + suffix, _FEDAVG + suffix)
            for suffix in map(_LOST.format, (0.5, 0.0))
        )
        at_lost, at_kept = (difference_table(scores, pair) for pair in (lost, kept))
        change = (at_lost - at_kept).dropna()
        named = Pair(*group, f"{display(name)}'s gain at 50 %", "gain at 0 %")
        for pair, table in ((lost, at_lost), (named, change)):
            if table.size and len(table) > 1:
                rows.append({**pair._asdict(), **effect(table.to_numpy(), BOUND_DB)})
    return judged(rows)


def _degradations(gathered: Gathered) -> pd.DataFrame:
    pairs = [(display(name), _FEDAVG) for name in METHODS[1:]]
    return effects(gathered, list(_pairs(gathered, pairs)))


def _groups(gathered: Gathered) -> Iterator[tuple[str, str, str]]:
    """Network, heterogeneity and test set of the runs, in the order of a table."""
    labels = gathered.scores[GROUP].drop_duplicates()
    for heterogeneity in ordered(labels["heterogeneity"], "heterogeneity"):
        for row in labels[labels["heterogeneity"] == heterogeneity].to_dict("records"):
            yield row["model"], heterogeneity, row["testset"]


def _pairs(gathered: Gathered, methods: list[tuple[str, str]]) -> Iterator[Pair]:
    """Each pair of methods that were run, in each heterogeneity."""
    known = set(method_order(gathered.runs))
    for group in _groups(gathered):
        for method, reference in methods:
            if {method, reference} <= known:
                yield Pair(*group, method, reference)


QUESTIONS = (
    Question(
        "methods",
        "Does FedVSR help?",
        {"methods": Choice()},
        _methods,
        Whole(
            "room",
            "what centralized training is above FedAvg",
            partial(_difference, method="centralized", reference=_FEDAVG),
        ),
    ),
    Question(
        "steps",
        "What are four times as many steps worth?",
        {"methods": Choice(("fedavg", "fedvsr_published")), "steps": Choice()},
        _steps,
        Whole(
            "margin",
            "FedVSR as published, 80 steps of 1, minus FedAvg, 20 steps of 4",
            partial(
                _difference, method=_PUBLISHED + _ONE_SAMPLE, reference=_FEDAVG + _FOUR_SAMPLES
            ),
        ),
    ),
    Question(
        "failures",
        "Do the weights help if uploads fail?",
        {"methods": Choice(("fedavg", *METHODS[1:]), "more"), "failures": Choice()},
        _failures,
    ),
    Question(
        "degradations",
        "Do the weights help if clients differ in degradation?",
        {"degradations": Choice()},
        _degradations,
    ),
)
