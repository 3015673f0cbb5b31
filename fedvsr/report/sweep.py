"""Pictures of a sweep's trials: a heat map over two settings, a curve over one, all in parallel."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
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
# Most labels of an axis of the heat map, and most columns and rows that it grows with.
_MAX_LABELS, _MAX_CELLS = 20, 20
# Most characters of a label, which may be the path of a file.
_MAX_TEXT = 36
# Lines of a colour each; the next ones have another style.
_STYLES = ("-", "--", ":", "-.")
_NUM_COLOURS = 10
_BEST = "#D55E00"


def draw(
    trials: pd.DataFrame,
    swept: Sequence[str],
    metric: str,
    mode: Literal["max", "min"],
    folder: Path,
) -> list[Path]:
    """Draw the pictures that suit a sweep, and return their paths; older ones are deleted.

    With two numeric settings or more, a heat map over the first two, or points if the trials are
    no grid; with one, a curve over it; with two settings or more of any kind, parallel coordinates.

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
    if len(numeric) == 1 or (numeric and _follows(scored, numeric)):
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
    """The metric over two settings, averaged over the others; the best cell is framed.

    Trials that are no grid, as a random search draws them, become points at their values.
    """
    if _is_scattered(trials, x, y):
        return _draw_points(trials, x, y, metric, mode, folder)
    table = trials.pivot_table(index=y, columns=x, values=metric, aggfunc="mean").sort_index()
    rows, columns = table.shape
    size = 2.6 + 0.75 * min(columns, _MAX_CELLS), 1.8 + 0.6 * min(rows, _MAX_CELLS)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots()
    values = table.to_numpy()
    image = axes.imshow(values, origin="lower", cmap=_COLOURS, aspect="auto")
    axes.set_xticks(*_labels(table.columns))
    axes.set_yticks(*_labels(table.index))
    axes.set(xlabel=x, ylabel=y)
    if values.size <= _CELLS_WITH_NUMBERS:
        low, high = np.nanmin(values), np.nanmax(values)
        for (i, j), value in np.ndenumerate(values):
            if np.isfinite(value):
                dark = value - low < 0.6 * (high - low)
                colour = "white" if dark else "black"
                text = _score(value, metric)
                axes.text(j, i, text, ha="center", va="center", color=colour, fontsize=8)
    best = np.nanargmax(values) if mode == "max" else np.nanargmin(values)
    row, column = divmod(int(best), columns)
    frame = Rectangle((column - 0.5, row - 0.5), 1, 1, fill=False, ec=_BEST, lw=2.5, clip_on=False)
    axes.add_patch(frame)
    bounded = _bounded(table)
    if len(bounded) > 1:
        for j, i in bounded:
            corner = j - 0.44, i - 0.44
            axes.add_patch(Rectangle(corner, 0.88, 0.88, fill=False, ec="white", lw=1, ls=":"))
        axes.set_title("dotted: the two add up to 1", fontsize=9)
    figure.colorbar(image, label=_label(metric))
    return save(figure, folder / "heat_map.png")


def _draw_points(
    trials: pd.DataFrame, x: str, y: str, metric: str, mode: Literal["max", "min"], folder: Path
) -> Path:
    figure = Figure(figsize=(6.4, 4.4), layout="constrained")
    axes = figure.subplots()
    points = axes.scatter(trials[x], trials[y], c=trials[metric], cmap=_COLOURS, s=60)
    _mark_best(axes, trials, x, y, metric, mode)
    axes.set(xlabel=x, ylabel=y)
    if _logarithmic(trials[x]):
        axes.set_xscale("log")
    if _logarithmic(trials[y]):
        axes.set_yscale("log")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    axes.set_axisbelow(True)
    figure.colorbar(points, label=_label(metric))
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
    cases = [key for key in varied if not pd.api.types.is_numeric_dtype(trials[key])]
    groups = list(trials.groupby(cases)) if cases else [(("",), trials)]
    labels = [" ".join(map(str, name)) for name, _ in groups]
    # The legend is beside the curves, and needs a line of the figure for each.
    wide, high = 0.085 * max(map(len, labels)) + 0.6 if cases else 0.0, 0.19 * len(groups) + 0.4
    figure = Figure(figsize=(6.4 + wide, max(4.0, high)), layout="constrained")
    axes = figure.subplots()
    for i, (label, (_, rows)) in enumerate(zip(labels, groups, strict=True)):
        means = rows.groupby(x)[metric].mean()
        colour, style = f"C{i % _NUM_COLOURS}", _STYLES[i // _NUM_COLOURS % len(_STYLES)]
        axes.plot(means.index, means, marker="o", ms=4, label=label, color=colour, ls=style)
        axes.scatter(rows[x], rows[metric], s=10, color=colour, alpha=0.4)
    _mark_best(axes, trials, x, metric, metric, mode)
    if _logarithmic(trials[x]):
        axes.set_xscale("log")
    axes.set(xlabel=x, ylabel=_label(metric))
    if cases:
        figure.legend(loc="outside right upper", frameon=False, fontsize=8)
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
    heights = pd.DataFrame({key: _height(trials[key]) for key in keys})
    ticks = [_ticks(trials[k], heights[k], metric if k == metric else None) for k in keys]
    longest = max(len(text) for axis in ticks for text, _ in axis)
    # Each axis has room for its labels before the next one begins.
    figure = Figure(figsize=(2 + max(1.7, 0.09 * longest) * len(keys), 4.4), layout="constrained")
    axes = figure.subplots()
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
    for i in range(len(keys)):
        axes.axvline(i, color="0.6", lw=0.8)
        for text, height in ticks[i]:
            axes.text(i + 0.03, height, text, fontsize=8, va="center", bbox=_PAPER)
    axes.set_xticks(range(len(keys)), [*map(_short, varied), _label(metric)])
    axes.set(yticks=[], ylim=(-0.06, 1.06), xlim=(-0.2, len(keys) - 0.5))
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    figure.colorbar(ScalarMappable(norm, colours), ax=axes, label=_label(metric))
    return save(figure, folder / "parallel.png")


def _mark_best(
    axes: Axes, trials: pd.DataFrame, x: str, y: str, metric: str, mode: Literal["max", "min"]
) -> None:
    """Draw a ring around the best trial."""
    best = trials.sort_values(metric, ascending=mode == "min").iloc[0]
    axes.scatter([best[x]], [best[y]], s=120, facecolor="none", edgecolor=_BEST, lw=2)


def _is_scattered(trials: pd.DataFrame, x: str, y: str) -> bool:
    """Whether trials share so few values of two settings that they form no grid, nor a diagonal."""
    pairs = trials[[x, y]].drop_duplicates().sort_values(x)
    is_diagonal = pairs[y].is_monotonic_increasing or pairs[y].is_monotonic_decreasing
    return not is_diagonal and 2 * len(pairs) < pairs[x].nunique() * pairs[y].nunique()


def _follows(trials: pd.DataFrame, numeric: Sequence[str]) -> bool:
    """Whether the first setting determines the others, so that one curve shows every trial.

    Values that were drawn at random do so too, but have no order that a curve could show.
    """
    if _is_scattered(trials, numeric[0], numeric[1]):
        return False
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


def _ticks(values: pd.Series, heights: pd.Series, metric: str | None) -> list[tuple[str, float]]:
    """The labels of an axis and their positions: its values, or 6 evenly spaced numbers.

    Args:
        values: a column of the trials.
        heights: their positions.
        metric: the column's name if it is the metric, whose numbers have a fixed form.
    """
    pairs = pd.DataFrame({"value": values, "height": heights}).drop_duplicates()
    pairs = pairs.sort_values("height")
    if len(pairs) > 12 and pd.api.types.is_numeric_dtype(values):
        positions = np.linspace(0, 1, 6)
        numbers = np.interp(positions, pairs["height"], pairs["value"].astype(float))
        digits = 3 + _common_digits(values)
        texts = [_score(v, metric) if metric else f"{v:.{digits}g}" for v in numbers]
        return list(zip(texts, positions.tolist(), strict=True))
    texts = [_score(v, metric) for v in pairs["value"]] if metric else _texts(pairs["value"])
    return _spaced(list(zip(texts, pairs["height"], strict=True)))


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


def _texts(values: Iterable[object]) -> list[str]:
    """Values as text: numbers with as few digits as tell them apart, and the ends of long words."""
    values = list(values)
    for digits in range(3, 10):
        texts = [f"{v:.{digits}g}" if isinstance(v, float) else str(v) for v in values]
        if len(set(texts)) == len(set(values)):
            break
    return [t if len(t) <= _MAX_TEXT else f"...{t[3 - _MAX_TEXT :]}" for t in texts]


def _labels(values: pd.Index) -> tuple[list[int], list[str]]:
    """Positions and texts of an axis of the heat map, of which large ones show some only."""
    step = math.ceil(len(values) / _MAX_LABELS)
    return list(range(0, len(values), step)), _texts(values)[::step]


def _score(value: float, metric: str) -> str:
    known = METRICS.get(metric.rpartition(".")[2].removeprefix("best_"))
    return f"{value:.{known.decimals if known else 4}f}"


def _short(key: str) -> str:
    """A setting's name without its section; `algorithm.name` is the algorithm."""
    return key.removesuffix(".name").rpartition(".")[2]


def _logarithmic(values: pd.Series) -> bool:
    return bool(values.min() > 0 and values.max() / values.min() >= 30)


def _label(metric: str) -> str:
    score = metric.rpartition(".")[2]
    name = "Local loss" if score == "loss" else METRICS[score].heading
    test_set = metric.rpartition(".")[0]
    return f"{name} on {test_set}" if test_set else name
