"""No text of a sweep's pictures is cut off or printed over another one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text

from fedvsr.report import sweep

METHODS = [
    *("fedavg", "fedprox", "fedvsr", "f_hifr", "f_ala", "scaffold"),
    *("feddyn", "fednova", "krum", "trimmed_mean", "fedmedian", "local"),
]
BASES = ["vrt_fedvsr_less_reds", "rvrt_fedvsr_less_reds", "/data/experiments/of/someone/mine.yaml"]


def grid(**values: Sequence[Any]) -> pd.DataFrame:
    names = [name.replace("__", ".") for name in values]
    return pd.DataFrame(list(product(*values.values())), columns=names)


def drawn_at_random(count: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "local.lr": 10 ** rng.uniform(-5, -2, count),
            "algorithm.alpha": rng.uniform(0.5, 2, count),
            "algorithm.decay": rng.choice(["linear", "none"], count),
        }
    )


LOG = [float(x) for x in np.logspace(-5, -2, 10)]
SHARES = [round(float(x), 3) for x in np.linspace(0, 1, 8)]
# By the number of trials.
SWEEPS: Mapping[str, pd.DataFrame] = {
    "4 grid": grid(algorithm__lambda_vsr=[0.1, 1.0], algorithm__lambda_hifr=[0.0, 0.5]),
    "4 line": grid(local__lr=LOG[::3]),
    "12 grid": grid(local__lr=LOG[:3], algorithm__mu=[0.1, 1.0], algorithm__name=METHODS[:2]),
    "12 random": drawn_at_random(12),
    "36 methods": grid(local__lr=LOG[::4], algorithm__name=METHODS),
    "30 bases": grid(local__lr=LOG, base=BASES),
    "40 grid": grid(local__lr=LOG, algorithm__mu=LOG[::3]),
    "40 shares": grid(algorithm__lambda_vsr=SHARES, algorithm__lambda_hifr=SHARES[:5]),
    "40 random": drawn_at_random(40),
    "40 line": grid(local__lr=[float(x) for x in np.logspace(-6, -1, 40)]),
    "900 grid": grid(local__lr=[x * m for x in LOG for m in (1, 1.3, 1.7)], seed=range(30)),
    "900 cells": grid(local__lr=list(np.logspace(-5, -2, 30)), algorithm__mu=list(range(30))),
}


def texts_of(figure: Figure) -> list[Text]:
    """The texts that are drawn: a label of an axis beyond its limits is not."""
    FigureCanvasAgg(figure).draw()
    outside = set[Text]()
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        slack = 1e-9 * (high - low)
        for tick in (*axis.get_major_ticks(), *axis.get_minor_ticks()):
            if not low - slack <= tick.get_loc() <= high + slack:
                outside |= {tick.label1, tick.label2}
    texts = [text for text in figure.findobj(Text) if isinstance(text, Text)]
    return [t for t in texts if t.get_visible() and t.get_text().strip() and t not in outside]


@pytest.mark.parametrize("name", SWEEPS)
def test_no_text_is_cut_off_or_overprinted(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    figures = dict[str, Figure]()

    def keep(figure: Figure, path: Path) -> Path:
        figures[path.name] = figure
        return path

    monkeypatch.setattr(sweep, "save", keep)
    trials = SWEEPS[name]
    scores = 30 + np.random.default_rng(0).normal(0, 0.3, len(trials))
    sweep.draw(
        trials.assign(**{"reds4.psnr_db": scores}),
        list(trials.columns),
        "reds4.psnr_db",
        "max",
        tmp_path,
    )
    assert figures
    for file, figure in figures.items():
        width, height = figure.get_size_inches()
        assert width <= 20, file
        assert height <= 16, file
        boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
        page = figure.bbox
        for text, box in boxes:
            assert box.x0 >= page.x0 - 1, f"{file}: {text!r} is cut off"
            assert box.x1 <= page.x1 + 1, f"{file}: {text!r} is cut off"
            assert box.y0 >= page.y0 - 1, f"{file}: {text!r} is cut off"
            assert box.y1 <= page.y1 + 1, f"{file}: {text!r} is cut off"
        for (one, first), (other, second) in combinations(boxes, 2):
            # Neighbouring lines may touch.
            inner = first.padded(-1)
            assert not inner.overlaps(second), f"{file}: {one!r} and {other!r} overlap"
        for legend in figure.findobj(Legend):
            assert isinstance(legend, Legend)
            labels = [text.get_text() for text in legend.get_texts()]
            assert len(set(labels)) == len(labels)
            box = legend.get_window_extent()
            assert not any(axes.bbox.padded(-1).overlaps(box) for axes in figure.axes), file


def test_lines_of_many_cases_differ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = list[Figure]()
    monkeypatch.setattr(sweep, "save", lambda figure, path: kept.append(figure) or path)
    trials = SWEEPS["36 methods"].assign(psnr_db=np.arange(36.0))
    sweep.draw_curve(trials, "local.lr", list(SWEEPS["36 methods"]), "psnr_db", "max", tmp_path)
    lines = kept[0].axes[0].get_lines()
    assert len({(line.get_color(), line.get_linestyle()) for line in lines}) == len(METHODS)


@pytest.mark.parametrize("count", [4, 12, 40])
def test_a_random_search_is_drawn_as_points(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = dict[str, Figure]()
    monkeypatch.setattr(sweep, "save", lambda figure, path: kept.update({path.name: figure}))
    trials = drawn_at_random(count).assign(psnr_db=np.arange(float(count)))
    sweep.draw(trials, list(trials)[:3], "psnr_db", "max", tmp_path)
    assert list(kept) == ["heat_map.png", "parallel.png"], "a curve would join what has no order"
    axes = kept["heat_map.png"].axes[0]
    assert len(axes.collections[0].get_offsets()) == count
    assert not axes.images
    # Shares that add up to 1 are a diagonal, not a random search.
    shares = [x / 10 for x in range(11)]
    bounded = pd.DataFrame({"a": shares, "b": [1 - x for x in shares], "psnr_db": shares})
    sweep.draw(bounded, ["a", "b"], "psnr_db", "max", tmp_path)
    assert list(kept) == ["heat_map.png", "parallel.png", "curve.png"]
    assert kept["heat_map.png"].axes[0].images
