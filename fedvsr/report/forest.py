"""Forest plot: differences between methods with their intervals, a row per comparison."""

from __future__ import annotations

from collections.abc import Mapping
from textwrap import fill
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from fedvsr.report.gather import GROUP, setting_name
from fedvsr.report.render import number

_COLOURS = {
    "higher": "#0072B2",
    "lower": "#D55E00",
    "equivalent": "#009E73",
    "undecided": "#4D4D4D",
}
# Characters in a line of a row's label and of a title.
_LABEL_WIDTH, _TITLE_WIDTH = 44, 80


def draw_forest(effects: pd.DataFrame, model: str) -> Figure:
    """Draw the comparisons of a network: a panel per heterogeneity and test set.

    A point is the mean, a broad line the t interval over seeds, a thin one the bootstrap interval
    over seeds and clips. The shaded band is the range that counts as equivalent.

    Args:
        effects: the table of `fedvsr.report.effects`.
        model: the network's name there.
    """
    groups = effects[effects["model"] == model].groupby(GROUP[1:], sort=False)
    panels = [(map(str, labels), table) for labels, table in groups]
    rows = [len(table) for _, table in panels]
    size = 7.2, 0.34 * sum(rows) + 0.55 * len(panels) + 1.1
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(
        len(panels), 1, squeeze=False, sharex=True, height_ratios=[count + 0.6 for count in rows]
    )
    for axes, (labels, table) in zip(grid[:, 0], panels, strict=True):
        _panel(axes, table)
        heterogeneity, testset = labels
        axes.set_title(fill(f"{testset}, {setting_name(heterogeneity)}", _TITLE_WIDTH), fontsize=9)
    grid[-1, 0].set_xlabel("Difference of PSNR (dB)", fontsize=9)
    figure.suptitle(f"{model}: mean, 95 % t interval (broad) and bootstrap (thin)", fontsize=10)
    return figure


def _panel(axes: Axes, table: pd.DataFrame) -> None:
    bound = float(table["bound"].iloc[0])
    axes.axvspan(-bound, bound, color="0.92", zorder=0)
    axes.axvline(0, color="black", lw=0.8, zorder=1)
    for place, row in enumerate(table.to_dict("records")):
        colour = _COLOURS[str(row["verdict"]).partition(",")[0]]
        axes.plot([row["low"], row["high"]], [place] * 2, color=colour, lw=5, alpha=0.55)
        axes.plot(
            [row["boot_low"], row["boot_high"]], [place] * 2, color="black", lw=1, marker="|", ms=6
        )
        axes.plot(row["mean"], place, "o", color=colour, ms=5, mec="white", mew=0.6)
        # Beside the panel, where no interval is.
        axes.annotate(
            _result(row), (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=8
        )
    labels = [f"{row['method']} minus {row['reference']}" for row in table.to_dict("records")]
    axes.set_yticks(range(len(table)), [fill(label, _LABEL_WIDTH) for label in labels], fontsize=8)
    axes.set_ylim(len(table) - 0.4, -0.6)
    axes.xaxis.set_major_locator(MaxNLocator(6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(axis="x", labelsize=8)


def _result(row: Mapping[Any, Any]) -> str:
    return f"{number(row['mean'], 3, signed=True)}  {row['verdict']} ({row['num_seeds']})"
