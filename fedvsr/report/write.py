"""Write the files of a report: tables, figures and a page of finished and unfinished runs.

It reads only the runs' parquet tables and the pictures in `frames/`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.report import crops, curves, forest, weights
from fedvsr.report.clients import draw_clients, title_of
from fedvsr.report.content import Report, read
from fedvsr.report.crops import Crop
from fedvsr.report.figures import save
from fedvsr.report.page import page
from fedvsr.report.papers import DEFAULT, Paper
from fedvsr.report.prose import markdown
from fedvsr.report.render import grid, render

Format = Literal["md", "csv", "tex", "html", "png", "pdf"]
FORMATS: tuple[Format, ...] = ("md", "csv", "tex", "html", "png", "pdf")
# Tables of a report that no format shows rounded.
_TIDY = ("margins", "differences", "overhead", "faults")
Progress = Callable[[str, int, int], None]
"""Told what is done next, the steps done, and their number."""
DEFAULT_FORMATS: tuple[Format, ...] = ("md", "csv", "html", "png")


def write_report(
    folder: Path,
    out: Path,
    formats: Sequence[Format] = DEFAULT_FORMATS,
    crop: Crop | None = None,
    clip_id: str | None = None,
    clients: bool = False,
    paper: Paper = DEFAULT,
    metrics: Sequence[str] | None = None,
    progress: Progress = lambda *_: None,
) -> Iterator[Path]:
    """Write a report and yield the path of each file once it is written.

    Args:
        folder: the folder of the results.
        out: the folder to write to; created if missing.
        formats: some of `FORMATS`: md (with the figures if png is among the formats), csv, tex,
            html (one page), png and pdf (figures).
        crop: the crop of the comparison; by default the one in which methods differ most.
        clip_id: the clip of the comparison; by default the one with that crop.
        clients: whether to draw the clients of every method too.
        paper: the form of the paper whose values stand beside the runs'.
        metrics: the metrics to show; see `fedvsr.report.gather.gather`.
        progress: called before each step.

    Raises:
        UserError: there is no run, no such clip, or the crop is not within its frame.
    """
    progress("reading the runs", 0, 1)
    report = read(folder, paper, metrics)
    if clip_id is not None and clip_id not in (known := _clips(report)):
        raise UserError(
            f"no finished run has a picture of clip {clip_id}; choose from: {', '.join(known)}"
        )
    kinds = [kind for kind in ("png", "pdf") if kind in formats]
    figures = list(_figures(report, crop, clip_id, clients)) if kinds else []
    out.mkdir(parents=True, exist_ok=True)
    texts = _texts(report, formats, [f"{name}.png" for name, _ in figures if "png" in kinds])
    total = len(texts) + len(figures)
    for i, (name, draw) in enumerate(figures):
        progress(name, i, total)
        figure = draw()
        for kind in kinds:
            yield save(figure, out / f"{name}.{kind}")
    for i, (name, make) in enumerate(texts.items(), len(figures)):
        progress(name, i, total)
        yield _write(out / name, make())


def _texts(
    report: Report, formats: Sequence[Format], pictures: Sequence[str]
) -> dict[str, Callable[[], str]]:
    """What makes the content of each file that is text, by the file's name."""
    texts = dict[str, Callable[[], str]]()
    tidy = {name: getattr(report, name) for name in _TIDY} | dict(_numbered(report))
    if not report.own.empty:
        tidy["own_degradation"] = report.own
    if not report.effects.empty:
        tidy["effects"] = report.effects
    if "csv" in formats:
        texts |= {f"{name}.csv": partial(cells.to_csv, index=False) for name, cells in tidy.items()}
    if "tex" in formats:
        for name, cells in _numbered(report):
            texts[f"{name}.tex"] = partial(render, grid(cells, "tex"), "tex")
    if "md" in formats:
        texts["report.md"] = partial(markdown, report, pictures)
    if "html" in formats:
        texts["report.html"] = partial(page, report)
    return texts


def _figures(
    report: Report, crop: Crop | None, clip_id: str | None, clients: bool
) -> Iterator[tuple[str, Callable[[], Figure]]]:
    """What draws each figure, with the figure's name."""
    styles = curves.line_styles(report.gathered)
    for model in report.points["model"].unique():
        yield _slug("curves", model), partial(curves.draw_curves, report.points, model, styles)
    for model in report.effects["model"].unique():
        yield _slug("effects", model), partial(forest.draw_forest, report.effects, model)
    for model in report.weights["model"].unique():
        yield _slug("weights", model), partial(weights.draw_weights, report.weights, model, styles)
    groups = dict[tuple[str, ...], list[crops.Frame]]()
    for frame in report.frames:
        key = frame.model, frame.heterogeneity, frame.testset, frame.degradation
        groups.setdefault(key, []).append(frame)
    for group, frames in groups.items():
        chosen = crops.choose(frames, crop, clip_id)
        if chosen:
            yield _slug("crops", *group), partial(crops.draw_crops, *chosen)
    if not clients:
        return
    runs = report.gathered.runs
    # One seed per method; the table of faults counts all seeds.
    first = runs.sort_values("seed").drop_duplicates(["model", "heterogeneity", "method"])
    trained = set(report.results.clients["run_id"])
    for row in first.sort_index().to_dict("records"):
        if row["run_id"] in trained:
            draw = partial(draw_clients, report.results, row["run_id"], title_of(row))
            yield _slug("clients", row["model"], row["heterogeneity"], row["method"]), draw


def _numbered(report: Report) -> list[tuple[str, pd.DataFrame]]:
    tables = [("table1", report.main), ("table2", report.ablation)]
    tables.append(("degradations", report.degradations))
    return [(name, cells) for name, cells in tables if not cells.empty]


def _clips(report: Report) -> list[str]:
    return sorted({frame.clip_id for frame in report.frames})


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-")


def _write(path: Path, text: str) -> Path:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
