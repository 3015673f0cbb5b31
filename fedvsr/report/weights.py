"""How far aggregation weights are from equal shares: curves over rounds."""

from __future__ import annotations

from textwrap import fill

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from fedvsr.records import Results
from fedvsr.report.curves import LineStyle
from fedvsr.report.gather import Gathered, method_order, ordered, setting_name
from fedvsr.report.legends import add_legend, add_title

# Smaller deviations come from rounding; a line of zeros would tell nothing.
_LEAST = 1e-6
_TITLE_WIDTH = 34
_KEYS = ["model", "heterogeneity", "method", "algorithm", "round_idx"]


def weight_points(results: Results, gathered: Gathered) -> pd.DataFrame:
    """How unequal the weights of finished runs were, by round.

    Returns:
        A row per network, heterogeneity, method and round: `mean` and `std` over seeds (null for
        one) of `weights_deviation`, the largest `|K w - 1|` of the K weights w of a round. Methods
        whose weights are always equal are left out.
    """
    finished = gathered.runs[gathered.runs["status"] == "finished"]
    # Both tables have the seed.
    labels = finished[["run_id", "model", "heterogeneity", "method", "algorithm"]]
    rounds = results.rounds.dropna(subset=["weights_deviation"]).merge(labels, on="run_id")
    points = rounds.groupby(_KEYS, as_index=False)["weights_deviation"].agg(["mean", "std"])
    return points[points.groupby(_KEYS[:3])["mean"].transform("max") > _LEAST].reset_index(
        drop=True
    )


def draw_weights(points: pd.DataFrame, model: str, styles: dict[str, LineStyle]) -> Figure:
    """Draw the weights of a network's runs, a panel per heterogeneity; see `weight_points`."""
    of_model = points[points["model"] == model]
    columns = ordered(of_model["heterogeneity"], "heterogeneity")
    figure = Figure(figsize=(3.4 * len(columns) + 2.1, 3.0), layout="constrained")
    panels = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
    for axes, heterogeneity in zip(panels, columns, strict=True):
        in_panel = of_model[of_model["heterogeneity"] == heterogeneity]
        for method in method_order(in_panel):
            rows = in_panel[in_panel["method"] == method]
            style = styles[method]
            (line,) = axes.plot(rows["round_idx"], rows["mean"], color=style.colour, label=method)
            if style.dashes:
                line.set_dashes(style.dashes)
            low = (rows["mean"] - rows["std"]).clip(lower=0)
            high = rows["mean"] + rows["std"]
            axes.fill_between(rows["round_idx"], low, high, color=style.colour, alpha=0.15, lw=0)
        axes.set_title(fill(setting_name(heterogeneity), _TITLE_WIDTH), fontsize=10)
        axes.set_xlabel("Round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("Largest deviation from\nan equal share")
    # After all lines: the panels share this axis, whose top no longer moves once it is set.
    panels[0].set_ylim(bottom=0)
    handles = {
        label: handle
        for axes in panels
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    add_legend(figure, handles)
    add_title(figure, f"{model}: aggregation weights\nmean ± standard deviation over seeds")
    return figure
