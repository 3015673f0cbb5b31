"""Write the files of a report: tables, figures and a page of finished and unfinished runs.

It reads only the runs' parquet tables and the pictures in `frames/`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal

import pandas as pd
from matplotlib.figure import Figure

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.report import crops, curves
from fedvsr.report.clients import draw_clients, title_of
from fedvsr.report.content import Report, read
from fedvsr.report.crops import Crop
from fedvsr.report.figures import save
from fedvsr.report.page import page
from fedvsr.report.prose import markdown
from fedvsr.report.render import grid, render

Format = Literal["md", "csv", "tex", "html", "png", "pdf"]
FORMATS: tuple[Format, ...] = ("md", "csv", "tex", "html", "png", "pdf")
DEFAULT_FORMATS: tuple[Format, ...] = ("md", "csv", "html", "png")


def write_report(
    folder: Path,
    out: Path,
    formats: Sequence[Format] = DEFAULT_FORMATS,
    crop: Crop | None = None,
    clip_id: str | None = None,
) -> Iterator[Path]:
    """Write a report and yield the path of each file once it is written.

    Args:
        folder: the folder of the results.
        out: the folder to write to; created if missing.
        formats: some of `FORMATS`: md (with the figures if png is among the formats), csv, tex,
            html (one page), png and pdf (figures).
        crop: the crop of the comparison; by default the one in which methods differ most.
        clip_id: the clip of the comparison; by default the one with that crop.

    Raises:
        UserError: there is no run, no such clip, or the crop is not within its frame.
    """
    report = read(folder)
    figures = list(_figures(report, crop, clip_id)) if {"png", "pdf"} & set(formats) else []
    if clip_id is not None and clip_id not in (known := _clips(report)):
        raise UserError(
            f"no finished run has a picture of clip {clip_id}; choose from: {', '.join(known)}"
        )
    out.mkdir(parents=True, exist_ok=True)
    if "csv" in formats:
        for name in ("margins", "differences", "overhead", "faults"):
            yield _write(out / f"{name}.csv", getattr(report, name).to_csv(index=False))
        for name, cells in _numbered(report):
            yield _write(out / f"{name}.csv", cells.to_csv(index=False))
    if "tex" in formats:
        for name, cells in _numbered(report):
            yield _write(out / f"{name}.tex", render(grid(cells, "tex"), "tex"))
    pictures = list[str]()
    for name, figure in figures:
        for kind in ("png", "pdf"):
            if kind in formats:
                yield save(figure, out / f"{name}.{kind}")
        pictures.append(f"{name}.png")
    if "md" in formats:
        yield _write(out / "report.md", markdown(report, pictures if "png" in formats else []))
    if "html" in formats:
        yield _write(out / "report.html", page(report))


def _figures(
    report: Report, crop: Crop | None, clip_id: str | None
) -> Iterator[tuple[str, Figure]]:
    styles = curves.line_styles(report.gathered)
    for model in report.points["model"].unique():
        yield _slug("curves", model), curves.draw_curves(report.points, model, styles)
    groups = dict[tuple[str, ...], list[crops.Frame]]()
    for frame in report.frames:
        key = frame.model, frame.heterogeneity, frame.testset
        groups.setdefault(key, []).append(frame)
    for group, frames in groups.items():
        chosen = crops.choose(frames, crop, clip_id)
        if chosen:
            yield _slug("crops", *group), crops.draw_crops(*chosen)
    runs = report.gathered.runs
    # One seed per method; the table of faults counts all seeds.
    first = runs.sort_values("seed").drop_duplicates(["model", "heterogeneity", "method"])
    trained = set(report.results.clients["run_id"])
    for row in first.sort_index().to_dict("records"):
        if row["run_id"] in trained:
            figure = draw_clients(report.results, row["run_id"], title_of(row))
            yield _slug("clients", row["model"], row["heterogeneity"], row["method"]), figure


def _numbered(report: Report) -> list[tuple[str, pd.DataFrame]]:
    tables = [("table1", report.main), ("table2", report.ablation)]
    return [(name, cells) for name, cells in tables if not cells.empty]


def _clips(report: Report) -> list[str]:
    return sorted({frame.clip_id for frame in report.frames})


def _slug(*words: str) -> str:
    return re.sub(r"[^a-z0-9.]+", "-", "-".join(words).lower()).strip("-")


def _write(path: Path, text: str) -> Path:
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    return path
