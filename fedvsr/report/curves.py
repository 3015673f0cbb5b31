"""Curves of scores over rounds: a figure per network, a panel per heterogeneity and test set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from textwrap import fill

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvsr.metrics import BICUBIC, METRICS
from fedvsr.report.gather import (
    GROUP,
    VARIANTS,
    Gathered,
    display,
    mean_scores,
    method_order,
    ordered,
    setting_name,
)
from fedvsr.report.legends import add_legend, add_title

# Okabe and Ito's colours, which colour-blind readers can tell apart; without yellow, which is too
# light for lines. Colours of neighbouring rows of a table differ most.
_COLOURS = ("#CC79A7", "#009E73", "#8C6D31", "#56B4E9", "#7F3C8D", "#E69F00")
_DASHES: tuple[tuple[float, ...], ...] = ((), (5, 2), (1.5, 1.5), (6, 2, 1.5, 2))
# Panels with more rounds have no markers.
_MARKED = 20
# Characters in a line of a panel's title.
_TITLE_WIDTH = 34


@dataclass(frozen=True)
class LineStyle:
    """How a method looks in every figure."""

    colour: str
    dashes: tuple[float, ...]
    """Lengths on and off, in line widths; empty for a solid line."""


# The bounds are grey because they do not compete.
_FIXED = {
    "fedvsr": LineStyle("#0072B2", ()),
    "fedvsr_published": LineStyle("#0072B2", (5, 2)),
    "fedavg": LineStyle("#D55E00", ()),
    "centralized": LineStyle("#4D4D4D", (5, 2)),
    "local": LineStyle("#4D4D4D", (1.5, 1.5)),
}


def line_styles(gathered: Gathered) -> dict[str, LineStyle]:
    """A style for each method. FedVSR, FedAvg and the bounds have the same one in every report."""
    algorithm = dict(zip(gathered.runs["method"], gathered.runs["algorithm"], strict=True))
    styles, count = dict[str, LineStyle](), 0
    for method in method_order(gathered.runs):
        fixed = _FIXED.get(algorithm[method]) if method == display(algorithm[method]) else None
        if fixed:
            styles[method] = fixed
            continue
        dashes = _DASHES[count // len(_COLOURS) % len(_DASHES)]
        styles[method] = LineStyle(_COLOURS[count % len(_COLOURS)], dashes)
        count += 1
    return styles


def curve_points(gathered: Gathered) -> pd.DataFrame:
    """Means over seeds by round.

    Returns:
        A row per network, heterogeneity, test set, method, round and metric: `mean`, `std` (null
        for one seed), `bicubic`, `num_seeds` and `state`. If runs of a method have finished, only
        those count; if none has, all count, up to the last round that all of them have.
    """
    runs, scores = gathered.runs, gathered.scores
    metrics = gathered.metrics
    counted_scores = list[pd.DataFrame]()
    for _, alike in runs.groupby(["model", "heterogeneity", "method"]):
        finished = alike[alike["status"] == "finished"]
        counted = alike if finished.empty else finished
        state = "" if not finished.empty else ", ".join(sorted(set(alike["status"])))
        scores_of_method = scores[scores["run_id"].isin(counted["run_id"])]
        scores_of_method = scores_of_method[
            scores_of_method["round_idx"] <= counted["last_round"].min()
        ]
        counted_scores.append(scores_of_method.assign(state=state))
    columns = [*metrics, *(BICUBIC + m for m in metrics)]
    keys = [*GROUP, "method", "algorithm", "state", "round_idx"]
    per_seed = mean_scores(pd.concat(counted_scores), [*keys, "run_id"], columns)
    parts = []
    for metric in metrics:
        named = per_seed.rename(columns={metric: "value", BICUBIC + metric: "baseline"})
        points = named.groupby(keys, as_index=False).agg(
            mean=("value", "mean"),
            std=("value", "std"),
            bicubic=("baseline", "mean"),
            num_seeds=("value", "count"),
        )
        # Not every run has every metric.
        parts.append(points.dropna(subset=["mean"]).assign(metric=metric))
    return pd.concat(parts, ignore_index=True)


def draw_curves(points: pd.DataFrame, model: str, styles: dict[str, LineStyle]) -> Figure:
    """Draw a network's curves: a row per metric, a column per heterogeneity and test set."""
    of_model = points[points["model"] == model]
    columns = [
        (heterogeneity, testset)
        for heterogeneity in ordered(of_model["heterogeneity"], "heterogeneity")
        for testset in ordered(of_model["testset"], "testset")
        if ((of_model["heterogeneity"] == heterogeneity) & (of_model["testset"] == testset)).any()
    ]
    metrics = [m for m in METRICS if (of_model["metric"] == m).any()]
    size = 3.4 * len(columns) + 1.9, 2.7 * len(metrics) + 0.5
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(metrics), len(columns), squeeze=False, sharex="col")
    for i, metric in enumerate(metrics):
        for j, (heterogeneity, testset) in enumerate(columns):
            axes = panels[i][j]
            in_panel = of_model[
                (of_model["heterogeneity"] == heterogeneity)
                & (of_model["testset"] == testset)
                & (of_model["metric"] == metric)
            ]
            _panel(axes, in_panel, styles)
            if i == 0:
                title = fill(testset, _TITLE_WIDTH) + f"\n{setting_name(heterogeneity)}"
                axes.set_title(title, fontsize=10)
            if i == len(metrics) - 1:
                axes.set_xlabel("Round")
            if j == 0:
                axes.set_ylabel(METRICS[metric].heading)
    add_legend(figure, _legend(panels.ravel().tolist(), method_order(of_model)))
    add_title(figure, f"{model}: {_what(of_model)}")
    return figure


def _what(points: pd.DataFrame) -> str:
    if points["std"].notna().any():
        return "mean ± standard deviation over seeds; no band: one seed"
    return "one seed"


def _panel(axes: Axes, points: pd.DataFrame, styles: dict[str, LineStyle]) -> None:
    rounds = points["round_idx"].nunique()
    for method in method_order(points):
        rows = points[points["method"] == method].sort_values("round_idx")
        style = styles[method]
        state = rows["state"].iloc[0]
        (line,) = axes.plot(
            rows["round_idx"],
            rows["mean"],
            color=style.colour,
            lw=2.2 if rows["algorithm"].iloc[0] in VARIANTS else 1.5,
            marker="o" if rounds <= _MARKED else None,
            ms=3,
            label=f"{method} ({state})" if state else method,
        )
        if style.dashes:
            line.set_dashes(style.dashes)
        band = rows["std"].notna()
        axes.fill_between(
            rows["round_idx"][band],
            (rows["mean"] - rows["std"])[band],
            (rows["mean"] + rows["std"])[band],
            color=style.colour,
            alpha=0.15,
            lw=0,
        )
    baseline = points["bicubic"].mean()
    # A thin black line, which no method has.
    axes.axhline(baseline, color="black", lw=0.8, label="bicubic", zorder=1)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _legend(panels: Sequence[Axes], methods: Sequence[str]) -> dict[str, Artist]:
    """An entry per method of any panel, in the order of a table's rows, then bicubic."""
    entries = dict[str, Artist]()
    for axes in panels:
        handles, labels = axes.get_legend_handles_labels()
        for label, handle in zip(labels, handles, strict=True):
            entries.setdefault(label, handle)
    places = {method: i for i, method in enumerate(methods)}

    def place(label: str) -> int:
        known = [i for method, i in places.items() if f"{label} (".startswith(f"{method} (")]
        return max(known, default=len(places))

    return {label: entries[label] for label in sorted(entries, key=place)}
