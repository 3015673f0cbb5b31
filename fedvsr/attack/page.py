"""Write an audit's folder: a page, a picture of all cases, and a table of the figures."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from fedvsr.attack.cases import Frame, Result
from fedvsr.attack.invert import Effort
from fedvsr.attack.replay import Replay
from fedvsr.checked_text import write_json
from fedvsr.files import replacing
from fedvsr.report.assets import environment, static
from fedvsr.report.figures import save

_COLUMNS = 2
_INK = "#1b1f24"


def write_audit(
    folder: Path, replay: Replay, client_id: int, effort: Effort, results: Sequence[Result]
) -> Iterator[Path]:
    """Write `audit.png`, `audit.json` and `audit.html`, and yield their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    yield save(contact_sheet(results), folder / "audit.png")
    path = folder / "audit.json"
    write_json(path, _figures(replay, client_id, effort, results))
    yield path
    page = environment().get_template("audit.html.j2")
    text = page.render(
        style=static("page.css"),
        run_id=replay.run_id,
        client_id=client_id,
        round_idx=replay.round_idx,
        same=_same(replay, results),
        effort=effort,
        crop=next((r.gt.shape[0] for r in results if r.case.local), None),
        cases=[_shown(result) for result in results],
    )
    path = folder / "audit.html"
    with replacing(path) as aside:
        aside.write_text(text, encoding="utf-8")
    yield path


def contact_sheet(results: Sequence[Result]) -> Figure:
    """Each case's frame and ground truth, above what the attack made of them."""
    rows = math.ceil(len(results) / _COLUMNS)
    figure = Figure(figsize=(7, 4.0 * rows), layout="constrained")
    boxes = figure.subfigures(rows, _COLUMNS, squeeze=False, hspace=0.03, wspace=0.03).flat
    for box, result in zip(boxes, results, strict=False):
        box.suptitle(_sentence(result), fontsize=11, fontweight="bold", color=_INK)
        upper, lower = box.subplots(2, 2)
        for axes, frame in zip(upper, (result.lq, result.gt), strict=True):
            axes.imshow(frame, interpolation="nearest")
        for axes, frame in zip(lower, (result.lq_found, result.gt_found), strict=True):
            axes.imshow(frame, interpolation="nearest")
        for axes, name in zip(upper, ("input", "target"), strict=True):
            axes.set_title(name, fontsize=10)
        for axes, name in zip(lower, ("lq", "gt"), strict=True):
            axes.set_xlabel(_score(result, name), fontsize=10)
        for axes, name in ((upper[0], "client's"), (lower[0], "found")):
            axes.set_ylabel(name, fontsize=10)
        for axes in (*upper, *lower):
            axes.set(xticks=[], yticks=[])
    return figure


def table(results: Sequence[Result]) -> Table:
    """A row for each case, as the command prints it."""
    shown = Table(box=None, pad_edge=False)
    for heading in ("update", "input", "its SSIM", "of one colour", "target", "its SSIM"):
        shown.add_column(heading, justify="left" if heading == "update" else "right")
    for result in results:
        scores = result.scores
        shown.add_row(
            f"{result.case.name}: {result.case.label}",
            _db(scores["lq_psnr_db"]),
            _ssim(scores["lq_ssim"]),
            _db(scores["lq_flat_psnr_db"]),
            _db(scores["gt_psnr_db"]),
            _ssim(scores["gt_ssim"]),
        )
    return shown


def _figures(
    replay: Replay, client_id: int, effort: Effort, results: Sequence[Result]
) -> dict[str, object]:
    rows = [
        {
            "case": result.case.name,
            "update": result.case.label,
            **result.scores,
            "mismatch": result.mismatch,
            "num_samples": result.num_samples,
            "num_steps": result.report.num_steps,
            "update_norm": result.report.update_norm,
            "mean_colour": [float(v) / 255 for v in result.lq.mean((0, 1))],
            "mean_colour_found": result.colour,
        }
        for result in results
    ]
    return {
        "run_id": replay.run_id,
        "config_hash": replay.config.config_hash(),
        "round_idx": replay.round_idx,
        "client_id": client_id,
        "is_recorded_update": _same(replay, results),
        "iterations": effort.iterations,
        "starts": effort.starts,
        "seed": effort.seed,
        "cases": rows,
    }


def _same(replay: Replay, results: Sequence[Result]) -> bool | None:
    """Whether the update computed again is the recorded one; None if it was not attacked."""
    own = [result for result in results if result.case.local is None]
    return replay.is_recorded(own[0].report) if own else None


def _shown(result: Result) -> dict[str, object]:
    frames = {"lq": result.lq, "gt": result.gt}
    found = {"lq": result.lq_found, "gt": result.gt_found}
    return {
        "label": _sentence(result),
        "num_samples": result.num_samples,
        "frames": {name: _data(frame) for name, frame in frames.items()},
        "found": {name: _data(frame) for name, frame in found.items()},
        "scores": {name: _score(result, name) for name in frames},
        "flat": {name: _db(result.scores[f"{name}_flat_psnr_db"]) for name in frames},
    }


def _sentence(result: Result) -> str:
    return result.case.label[0].upper() + result.case.label[1:]


def _score(result: Result, name: str) -> str:
    ssim = _ssim(result.scores[f"{name}_ssim"])
    return _db(result.scores[f"{name}_psnr_db"]) + (f", SSIM {ssim}" if ssim else "")


def _db(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} dB"


def _ssim(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _data(frame: Frame) -> str:
    """A picture inside a page."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
