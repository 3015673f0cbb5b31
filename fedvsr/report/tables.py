"""The paper's tables of scores, computed from result tables.

A table is a pandas table with a row per cell:

    model, method, algorithm, heterogeneity, testset, metric
    mean, std      over seeds; a seed's value is the mean over clips of the last evaluated round
    num_seeds      runs that `mean` is over
    state          empty if all its runs have finished, else e.g. `running, round 4 of 10`
    best           the best federated method of its column and network, and those within its
                   standard deviation, if each of them has two finished seeds or more
    paper          the value of the paper's chosen form, for the network at the paper's size
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from typing import Any

import pandas as pd

from fedvsr.metrics import METRICS
from fedvsr.report import papers
from fedvsr.report.gather import (
    BOUNDS,
    GROUP,
    PARTS,
    VARIANTS,
    Gathered,
    display,
    last_scores,
    mean_scores,
    method_order,
    ordered,
)
from fedvsr.report.papers import Paper

BICUBIC = "bicubic"
_KEYS = ["model", "method", "algorithm", "heterogeneity", "testset", "metric"]
_COLUMNS = [*_KEYS, "mean", "std", "num_seeds", "state", "best", "paper"]


def main_table(gathered: Gathered, paper: Paper = papers.DEFAULT) -> pd.DataFrame:
    """Table 1: bicubic, the bounds, and every method but the parts of FedVSR."""
    return _table(gathered, paper, lambda algorithm: algorithm not in PARTS, with_bicubic=True)


def degradation_table(
    gathered: Gathered, scores: pd.DataFrame, paper: Paper = papers.DEFAULT
) -> pd.DataFrame:
    """The cells of Table 1 under each degradation, of `fedvsr.report.degradations`."""
    if scores.empty:
        return pd.DataFrame(columns=_COLUMNS)
    runs = gathered.runs[gathered.runs["run_id"].isin(scores["run_id"])]
    of_runs = replace(gathered, runs=runs, scores=scores)
    return _table(of_runs, paper, lambda _: True, with_bicubic=True)


def ablation_table(gathered: Gathered, paper: Paper = papers.DEFAULT) -> pd.DataFrame:
    """Table 2: FedAvg, each part of FedVSR alone, and FedVSR, of the networks with such a part."""
    runs = gathered.runs
    models = set(runs[runs["algorithm"].isin(PARTS)]["model"])
    if not models:
        return pd.DataFrame(columns=_COLUMNS)
    of_models = replace(
        gathered,
        runs=runs[runs["model"].isin(models)],
        scores=gathered.scores[gathered.scores["model"].isin(models)],
    )
    rows = {"fedavg", *PARTS, *VARIANTS}
    return _table(of_models, paper, lambda algorithm: algorithm in rows, with_bicubic=False)


def margins(cells: pd.DataFrame) -> pd.DataFrame:
    """Margins of FedVSR over the other federated methods of a table; positive means better.

    Returns:
        A row per heterogeneity, metric and variant of FedVSR. `over_all`: mean margin over
        networks, test sets and methods. `over_second`: mean margin over the best other method,
        over networks and test sets. `num_all`, `num_second`: the number of comparisons in each
        mean. Only cells whose runs have all finished count.
    """
    counted = cells[(cells["state"] == "") & cells["mean"].notna()]
    counted = counted[~counted["algorithm"].isin([*BOUNDS, BICUBIC])]
    rows = []
    for heterogeneity, metric, variant in product(
        ordered(counted["heterogeneity"], "heterogeneity"),
        [metric for metric in METRICS if (counted["metric"] == metric).any()],
        VARIANTS,
    ):
        selected = counted[
            (counted["heterogeneity"] == heterogeneity) & (counted["metric"] == metric)
        ]
        sign = 1.0 if METRICS[metric].higher_is_better else -1.0
        of_all, of_second = list[float](), list[float]()
        for _, column in selected.groupby(["model", "testset"]):
            ours = column[column["algorithm"] == variant]["mean"]
            others = column[~column["algorithm"].isin(VARIANTS)]["mean"]
            # Several settings of FedVSR have no common margin.
            if len(ours) != 1 or others.empty:
                continue
            over = sign * (float(ours.iloc[0]) - others)
            of_all += over.tolist()
            of_second.append(float(over.min()))
        if of_all:
            rows.append(
                {
                    "heterogeneity": heterogeneity,
                    "metric": metric,
                    "algorithm": variant,
                    "over_all": sum(of_all) / len(of_all),
                    "num_all": len(of_all),
                    "over_second": sum(of_second) / len(of_second),
                    "num_second": len(of_second),
                }
            )
    columns = ["heterogeneity", "metric", "algorithm"]
    columns += ["over_all", "num_all", "over_second", "num_second"]
    return pd.DataFrame(rows, columns=columns)


def sentences(cells: pd.DataFrame, paper: Paper = papers.DEFAULT) -> list[str]:
    """The summary of Table 1 as sentences, with the paper's margins."""
    of_paper = margins(papers.cells(paper, [a for a in papers.methods(paper) if a not in PARTS]))
    lines = []
    for row in margins(cells).to_dict("records"):
        heterogeneity, metric = row["heterogeneity"], row["metric"]
        lines.append(
            f"Heterogeneity {heterogeneity}, {METRICS[metric].label}: {display(row['algorithm'])} "
            f"is {_margin(row['over_all'], metric)} than the other methods on average "
            f"({_count(row['num_all'], 'comparison')}), and {_margin(row['over_second'], metric)} "
            f"than the best of them ({_count(row['num_second'], 'comparison')})."
        )
        key = ["heterogeneity", "metric", "algorithm"]
        same = of_paper[(of_paper[key] == pd.Series(row)[key].to_numpy()).all(axis=1)]
        if len(same):
            lines[-1] += _of_paper(paper, same.iloc[0])
    return lines


def _of_paper(paper: Paper, row: pd.Series[Any]) -> str:
    """What the paper's text and table say about a margin, as a sentence."""
    metric = row["metric"]
    over_all, over_second = (
        f"{row[name]:+.{METRICS[metric].decimals}f}" for name in ("over_all", "over_second")
    )
    stated = papers.stated_margins(paper, row["heterogeneity"], metric)
    if not stated:
        return f" The paper's table gives {over_all} and {over_second}."
    # The paper prints SSIM with three decimals in its text and four in its table.
    digits = "+.2f" if metric == "psnr_db" else "+.3f"
    return (
        f" The paper states {stated['all']:{digits}} and {stated['second']:{digits}}; "
        f"its own table gives {over_all} and {over_second}."
    )


def _table(
    gathered: Gathered, paper: Paper, wanted: Callable[[str], bool], with_bicubic: bool
) -> pd.DataFrame:
    runs = gathered.runs[gathered.runs["algorithm"].map(wanted)]
    scores = last_scores(gathered)
    pairs = set(zip(scores["heterogeneity"], scores["testset"], strict=True))
    rows = []
    for model, heterogeneity, testset in product(
        ordered(runs["model"], "model"),
        ordered(runs["heterogeneity"], "heterogeneity"),
        ordered(scores["testset"], "testset"),
    ):
        if (heterogeneity, testset) not in pairs:
            continue
        key = {"model": model, "heterogeneity": heterogeneity, "testset": testset}
        column_scores = scores[(scores[GROUP] == pd.Series(key)[GROUP].to_numpy()).all(axis=1)]
        if with_bicubic:
            rows += [_bicubic(key, metric, column_scores) for metric in gathered.metrics]
        of_model = runs[runs["model"] == model]
        # A run of another test set is not missing here; one without any score may be.
        elsewhere = set(scores["run_id"]) - set(column_scores["run_id"])
        in_column = of_model[
            (of_model["heterogeneity"] == heterogeneity) & ~of_model["run_id"].isin(elsewhere)
        ]
        methods = _methods(of_model, paper, model, wanted)
        for method, algorithm in methods.items():
            method_runs = in_column[in_column["method"] == method]
            method_scores = column_scores[column_scores["method"] == method]
            label = {**key, "method": method, "algorithm": algorithm}
            rows += [
                _cell(label, metric, paper, method_runs, method_scores)
                for metric in gathered.metrics
            ]
    # Without a row it needs its columns all the same: a sweep may have nothing but parts of FedVSR.
    columns = [*(name for name in _COLUMNS if name != "best"), "finished"]
    return _with_best(pd.DataFrame(rows, columns=columns))[_COLUMNS]


def _methods(
    runs: pd.DataFrame, paper: Paper, model: str, wanted: Callable[[str], bool]
) -> dict[str, str]:
    """The methods of a network in the order of its rows, each with its algorithm.

    With the paper's networks at its size, methods without a run are rows of dashes.
    """
    methods = runs[["method", "algorithm"]].drop_duplicates()
    if model in papers.networks(paper):
        planned = [a for a in papers.methods(paper) if wanted(a)]
        missing = [a for a in planned if a not in set(methods["algorithm"])]
        without_run = pd.DataFrame({"method": [display(a) for a in missing], "algorithm": missing})
        methods = pd.concat([methods, without_run], ignore_index=True)
    algorithm_of = dict(zip(methods["method"], methods["algorithm"], strict=True))
    return {method: algorithm_of[method] for method in method_order(methods)}


def _bicubic(key: dict[str, str], metric: str, scores: pd.DataFrame) -> dict[str, Any]:
    # All runs score the same frames.
    column = f"bicubic_{metric}"
    value = mean_scores(scores, ["run_id"], [column])[column].mean()
    names = {"method": BICUBIC, "algorithm": BICUBIC, "metric": metric}
    rest = {"std": None, "num_seeds": 0, "state": "", "finished": True, "paper": None}
    return {**key, **names, "mean": value, **rest}


def _cell(
    label: dict[str, str], metric: str, paper: Paper, runs: pd.DataFrame, scores: pd.DataFrame
) -> dict[str, Any]:
    finished = runs[runs["status"] == "finished"]
    counted = scores[scores["run_id"].isin(finished["run_id"])]
    state = ""
    if len(finished) < len(runs):
        unfinished = runs[runs["status"] != "finished"].sort_values("last_round")
        furthest = unfinished.iloc[-1]
        state = f"{furthest['status']}, round {furthest['last_round']} of {furthest['num_rounds']}"
        if len(finished):
            state = f"{len(finished)} of {len(runs)} seeds; {state}"
        elif furthest["last_round"] > 0:
            # No run has finished: show the most advanced one, with its state.
            counted = scores[scores["run_id"] == furthest["run_id"]]
    per_seed = mean_scores(counted, ["run_id"], [metric])[metric].dropna()
    return {
        **label,
        "metric": metric,
        "mean": per_seed.mean() if len(per_seed) else None,
        "std": per_seed.std(ddof=1) if len(per_seed) > 1 else None,
        "num_seeds": len(per_seed),
        "state": state,
        "finished": len(finished) > 0,
        "paper": papers.value(paper, label, metric, *_settings(runs)),
    }


def _settings(runs: pd.DataFrame) -> tuple[dict[str, Any], list[str]]:
    """The settings of a method's runs, and the keys of those that its name shows."""
    if runs.empty:
        return {}, []
    return json.loads(runs.iloc[0]["setting"]), runs.iloc[0]["named"].split()


def _with_best(cells: pd.DataFrame) -> pd.DataFrame:
    cells = cells.assign(best=False)
    # Means of finished runs compete, even if other seeds are missing.
    competing = cells[
        cells["finished"].astype(bool)
        & cells["mean"].notna()
        & ~cells["algorithm"].isin([*BOUNDS, BICUBIC])
    ]
    for (*_, metric), column in competing.groupby([*GROUP, "metric"]):
        # A single seed does not tell a better method from a lucky draw.
        if len(column) < 2 or column["num_seeds"].min() < 2:
            continue
        mean, std = (column[name].astype(float).to_numpy() for name in ("mean", "std"))
        known = METRICS[str(metric)]
        top = int(mean.argmax() if known.higher_is_better else mean.argmin())
        # Equal numbers as printed are both the best.
        reach = max(std[top], 0.5 * 10.0**-known.decimals)
        cells.loc[column.index[abs(mean - mean[top]) <= reach], "best"] = True
    return cells


def _margin(value: float, metric: str) -> str:
    side = "better" if value >= 0 else "worse"
    return f"{abs(value):.{METRICS[metric].decimals}f}{METRICS[metric].suffix} {side}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
