"""Pictures of a sweep's trials: a heat map over two settings, a curve over one, all in parallel."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedvsr.metrics import METRICS
from fedvsr.report.figures import save

_PICTURES = ("heat_map.png", "curve.png", "parallel.png")
_COLOURS = "viridis"
# Background of text that lines cross.
_PAPER = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
# Height of a line of text, as a share of an axis.
_LINE = 0.045
# With more cells than this, numbers do not fit.
_CELLS_WITH_NUMBERS = 15 * 15


def draw(
    trials: pd.DataFrame,
    swept: Sequence[str],
    metric: str,
    mode: Literal["max", "min"],
    folder: Path,
) -> list[Path]:
    """Draw the pictures that suit a sweep, and return their paths; older ones are deleted.

    With two numeric settings or more, a heat map over the first two; with one, a curve over it;
    with two settings or more of any kind, parallel coordinates.

    Args:
        trials: the table of `trials.parquet`.
        swept: columns of the swept settings.
        metric: column of the metric.
        mode: whether a larger or a smaller metric is better.
        folder: the folder to write to.
    """
    clear(folder)
    scored = trials.dropna(subset=[metric])
    varied = [key for key in swept if scored[key].nunique() > 1]
    numeric = [key for key in varied if pd.api.types.is_numeric_dtype(scored[key])]
    numeric = [key for key in numeric if key != "seed"]
    drawn = list[Path]()
    if len(numeric) >= 2:
        drawn.append(draw_heat_map(scored, numeric[0], numeric[1], metric, mode, folder))
    if numeric and (len(numeric) == 1 or _follows(scored, numeric)):
        drawn.append(draw_curve(scored, numeric[0], varied, metric, mode, folder))
    if len(varied) >= 2:
        drawn.append(draw_parallel(scored, varied, metric, mode, folder))
    return drawn


def clear(folder: Path) -> None:
    """Delete a sweep's pictures, which may be of fewer trials than it has now."""
    for name in _PICTURES:
        (folder / name).unlink(missing_ok=True)


def draw_heat_map(
    trials: pd.DataFrame, x: str, y: str, metric: str, mode: Literal["max", "min"], folder: Path
) -> Path:
    """The metric over two settings, averaged over the others; the best cell is framed."""
    table = trials.pivot_table(index=y, columns=x, values=metric, aggfunc="mean").sort_index()
    rows, columns = table.shape
    figure = Figure(figsize=(2.6 + 0.75 * columns, 1.8 + 0.6 * rows), layout="constrained")
    axes = figure.subplots()
    values = table.to_numpy()
    image = axes.imshow(values, origin="lower", cmap=_COLOURS, aspect="auto")
    axes.set_xticks(range(columns), [f"{value:g}" for value in table.columns])
    axes.set_yticks(range(rows), [f"{value:g}" for value in table.index])
    axes.set(xlabel=x, ylabel=y)
    if values.size <= _CELLS_WITH_NUMBERS:
        low, high = np.nanmin(values), np.nanmax(values)
        score = METRICS.get(metric.rpartition(".")[2])
        digits = score.decimals if score else 4
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value - low < 0.6 * (high - low)
                colour = "white" if dark else "black"
                text = f"{value:.{digits}f}"
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    best = np.nanargmax(values) if mode == "max" else np.nanargmin(values)
    row, column = divmod(int(best), columns)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec="#D55E00", lw=2.5)
    axes.add_patch(frame)
    bounded = _bounded(table)
    if len(bounded) > 1:
        for j, i in bounded:
            corner = j - 0.44, i - 0.44
            axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, ec="white", lw=1, ls=":"))
        axes.set_title("dotted: the two add up to 1", fontsize=9)
    figure.colorbar(image, label=_label(metric))
    return save(figure, folder / "heat_map.png")


def draw_curve(
    trials: pd.DataFrame,
    x: str,
    varied: Sequence[str],
    metric: str,
    mode: Literal["max", "min"],
    folder: Path,
) -> Path:
    """The metric over one setting: every trial, a line per case, the best trial marked."""
    figure = Figure(figsize=(6.4, 4), layout="constrained")
    axes = figure.subplots()
    cases = [key for key in varied if not pd.api.types.is_numeric_dtype(trials[key])]
    groups = trials.groupby(cases) if cases else [("", trials)]
    for name, rows in groups:
        label = " ".join(map(str, name)) if isinstance(name, tuple) else str(name)
        means = rows.groupby(x)[metric].mean()
        (line,) = axes.plot(means.index, means, marker="o", ms=4, label=label)
        axes.scatter(rows[x], rows[metric], s=10, color=line.get_color(), alpha=0.4)
    best = trials.sort_values(metric, ascending=mode == "min").iloc[0]
    axes.scatter([best[x]], [best[metric]], s=120, facecolor="none", edgecolor="#D55E00", lw=2)
    positive = trials[x][trials[x] > 0]
    if len(positive) == len(trials) and positive.max() / positive.min() >= 30:
        axes.set_xscale("log")
    axes.set(xlabel=x, ylabel=_label(metric))
    if cases:
        axes.legend(frameon=False, fontsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return save(figure, folder / "curve.png")


def draw_parallel(
    trials: pd.DataFrame,
    varied: Sequence[str],
    metric: str,
    mode: Literal["max", "min"],
    folder: Path,
) -> Path:
    """Each trial as a line through its values, coloured by the metric; the best trial is thick."""
    keys = [*varied, metric]
    figure = Figure(figsize=(2 + 1.7 * len(keys), 4.4), layout="constrained")
    axes = figure.subplots()
    heights = pd.DataFrame({key: _height(trials[key]) for key in keys})
    order = trials[metric].rank(method="first", ascending=mode == "max").astype(int)
    colours = mpl.colormaps[_COLOURS]
    norm = Normalize(trials[metric].min(), trials[metric].max())
    for index in order.sort_values().index:
        best = order[index] == len(order)
        axes.plot(
            range(len(keys)),
            heights.loc[index],
            color=colours(norm(trials.loc[index, metric])),
            lw=3 if best else 1,
            alpha=1 if best else 0.6,
        )
    for i, key in enumerate(keys):
        axes.axvline(i, color="0.6", lw=0.8)
        for value, height in _ticks(trials[key], heights[key]):
            axes.text(i + 0.03, height, value, fontsize=8, va="center", bbox=_PAPER)
    axes.set_xticks(range(len(keys)), [*(key.rpartition(".")[2] for key in varied), _label(metric)])
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.2, len(keys) - 0.5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=_label(metric))
    return save(figure, folder / "parallel.png")


def _follows(trials: pd.DataFrame, numeric: Sequence[str]) -> bool:
    """Whether the first setting determines the others, so that one curve shows every trial."""
    return bool((trials.groupby(numeric[0])[list(numeric[1:])].nunique() == 1).all().all())


def _bounded(table: pd.DataFrame) -> list[tuple[int, int]]:
    """Cells (column, row) in which the two settings add up to 1."""
    return [
        (j, i)
        for i, y in enumerate(table.index)
        for j, x in enumerate(table.columns)
        if abs(x + y - 1) < 1e-6
    ]


def _height(values: pd.Series) -> pd.Series:
    """Positions on an axis from 0 to 1: numbers to scale; words, or at most 3 numbers, evenly."""
    if not pd.api.types.is_numeric_dtype(values) or values.nunique() <= 3:
        places = values.rank(method="dense") - 1
    else:
        places = np.log(values) if _logarithmic(values) else values.astype(float)
    span = places.max() - places.min()
    return (places - places.min()) / span if span else places * 0 + 0.5


def _ticks(values: pd.Series, heights: pd.Series) -> list[tuple[str, float]]:
    """The labels of an axis and their positions: its values, or 6 evenly spaced numbers."""
    pairs = pd.DataFrame({"value": values, "height": heights}).drop_duplicates()
    pairs = pairs.sort_values("height")
    if len(pairs) > 12 and pd.api.types.is_numeric_dtype(values):
        positions = np.linspace(0, 1, 6)
        numbers = np.interp(positions, pairs["height"], pairs["value"].astype(float))
        digits = 3 + _common_digits(values)
        texts = [f"{value:.{digits}g}" for value in numbers]
        return list(zip(texts, positions.tolist(), strict=True))
    return _spaced([(_text(value), height) for value, height in pairs.itertuples(index=False)])


def _spaced(ticks: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The labels that do not overprint their neighbours: the first, the last and some between."""
    kept = [*ticks[:1]]
    for text, height in ticks[1:-1]:
        if min(height - kept[-1][1], ticks[-1][1] - height) >= _LINE:
            kept.append((text, height))
    return [*kept, *ticks[-1:]] if len(ticks) > 1 and ticks[-1][1] - kept[-1][1] >= _LINE else kept


def _common_digits(values: pd.Series) -> int:
    """How many leading digits numbers that lie close together share."""
    span = float(values.max() - values.min())
    largest = float(values.abs().max())
    return max(0, math.floor(math.log10(largest / span))) if span and largest else 0


def _text(value: object) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)


def _logarithmic(values: pd.Series) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() >= 30)


def _label(metric: str) -> str:
    score = metric.rpartition(".")[2]
    name = "Local loss" if score == "loss" else METRICS[score].heading
    test_set = metric.rpartition(".")[0]
    return f"{name} on {test_set}" if test_set else name
