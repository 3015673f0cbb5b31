"""Scores by degradation, and of clients under their own degradation and under the others'."""

from __future__ import annotations

import pandas as pd

from fedvsr.metrics import columns
from fedvsr.records import Results
from fedvsr.report.gather import Gathered, mean_scores, method_order, ordered

OWN = [
    *("model", "method", "heterogeneity", "testset", "num_seeds"),
    *("own_db", "own_std", "worst_db", "worst_std", "others_db", "others_std"),
]
_RUN = ["run_id", "test_set"]


def by_degradation(results: Results, gathered: Gathered) -> pd.DataFrame:
    """Rows like those of `Gathered.scores`, but one per degradation, which `testset` names too.

    Test sets that are scored under one degradation are left out.
    """
    rows = _of_several(results)
    keys = ["run_id", "round_idx", "clip_id", "degradation"]
    means = mean_scores(rows, keys, columns()).merge(gathered.runs, on="run_id", how="inner")
    labels = gathered.scores[["run_id", "clip_id", "testset"]].drop_duplicates()
    scores = means.merge(labels, on=["run_id", "clip_id"])
    return scores.assign(testset=scores["testset"] + ": " + scores["degradation"].astype(str))


def own_scores(results: Results, gathered: Gathered) -> pd.DataFrame:
    """PSNR of clients' networks under their own degradation and under those that they lack.

    A client's own score is the mean over the degradations of its clips, each by its number of
    clips. If clients share a network, it is that network's score.

    Returns:
        A row of `OWN` per network, method, heterogeneity and test set: means over the seeds of
        finished runs of what `own_by_run` gives, with standard deviations.
    """
    by_run = own_by_run(results, gathered)
    return pd.DataFrame(columns=OWN) if by_run.empty else _over_seeds(by_run)


def own_by_run(results: Results, gathered: Gathered) -> pd.DataFrame:
    """The same for each finished run and test set, with the columns of `Gathered.runs`.

    Returns:
        `own`: mean over clients; `worst`: the client with the lowest own score; `others`: mean over
        clients of the degradations that they have no clip of, null if there are none. Decibels.
    """
    runs = gathered.runs[gathered.runs["status"] == "finished"]
    rows = _of_several(results).merge(runs[["run_id", "last_round"]], on="run_id")
    rows = rows[rows["round_idx"] == rows["last_round"]]
    if rows.empty:
        return pd.DataFrame()
    counts = results.partition.groupby(["run_id", "client_id", "degradation"]).size()
    dealt = counts.rename("num_clips").reset_index()
    clients = dealt[["run_id", "client_id"]].drop_duplicates()
    # One score per client and degradation, also of a network that all clients share.
    shared = rows[rows["client_id"].isna()].drop(columns="client_id").merge(clients, on="run_id")
    each = pd.concat([shared, rows[rows["client_id"].notna()]])
    keys = [*_RUN, "client_id", "degradation"]
    each = mean_scores(each.astype({"client_id": "int64"}), keys, ["psnr_db"])
    each = each.merge(dealt, on=["run_id", "client_id", "degradation"], how="left")
    held = each[each["num_clips"].notna()]
    held = held.assign(sum_db=held["psnr_db"] * held["num_clips"])
    sums = held.groupby([*_RUN, "client_id"])[["sum_db", "num_clips"]].sum()
    own = (sums["sum_db"] / sums["num_clips"]).groupby(_RUN)
    others = each[each["num_clips"].isna()].groupby([*_RUN, "client_id"])["psnr_db"].mean()
    by_run = pd.DataFrame(
        {"own": own.mean(), "worst": own.min(), "others": others.groupby(_RUN).mean()}
    ).reset_index()
    labels = gathered.scores.merge(results.evaluations[[*_RUN, "clip_id"]].drop_duplicates())
    labels = labels[[*_RUN, "testset"]].drop_duplicates(_RUN)
    return by_run.merge(labels, on=_RUN).merge(runs, on="run_id")


def _of_several(results: Results) -> pd.DataFrame:
    """Scores of the test sets that a run scores under several degradations."""
    rows = results.evaluations.dropna(subset=["degradation"])
    counts = rows.groupby(_RUN)["degradation"].transform("nunique")
    return rows[counts > 1]


def _over_seeds(by_run: pd.DataFrame) -> pd.DataFrame:
    rows = []
    for (model, heterogeneity, testset), group in by_run.groupby(
        ["model", "heterogeneity", "testset"]
    ):
        for method in method_order(group):
            seeds = group[group["method"] == method]
            row = {"model": model, "method": method, "num_seeds": len(seeds)}
            row |= {"heterogeneity": heterogeneity, "testset": testset}
            for name in ("own", "worst", "others"):
                row |= {f"{name}_db": seeds[name].mean(), f"{name}_std": seeds[name].std(ddof=1)}
            rows.append(row)
    table = pd.DataFrame(rows, columns=OWN)
    places = {name: i for i, name in enumerate(ordered(table["model"], "model"))}
    return table.sort_values("model", key=lambda names: names.map(places), kind="stable")
