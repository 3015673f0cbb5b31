"""The report as one HTML page that loads nothing: neither the network nor other files."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from fedvsr.metrics import METRICS
from fedvsr.metrics.fidelity import psnr
from fedvsr.report.assets import environment, static
from fedvsr.report.clients import draw_clients, title_of
from fedvsr.report.content import Report
from fedvsr.report.crops import Frame
from fedvsr.report.curves import LineStyle, line_styles
from fedvsr.report.figures import read_picture
from fedvsr.report.gather import (
    VARIANTS,
    method_order,
    ordered,
    setting_name,
)
from fedvsr.report.prose import sections

# Pages are mailed and read on phones, so frames are left out beyond this size.
_MOST_BYTES = 24 * 2**20
# Pictures are compressed if their total size is larger; a note tells the reader.
_LOSSLESS_BYTES = 8 * 2**20
_QUALITY = 90


def page(report: Report) -> str:
    """The page as HTML."""
    scenes, note = _scenes(report.frames)
    runs = report.gathered.runs
    template = environment().get_template("page.html.j2")
    return template.render(
        sections=sections(report, "html"),
        num_runs=len(runs),
        num_finished=int((runs["status"] == "finished").sum()),
        methods=method_order(runs),
        clients=list(_clients(report)),
        has_bands=bool(report.points["std"].notna().any()),
        has_scenes=bool(scenes),
        scenes_note=note,
        data=_json({"charts": _charts(report), "scenes": scenes}),
        plot_script=static("uPlot.iife.min.js"),
        plot_style=static("uPlot.min.css"),
        parts_script=static("parts.js"),
        script=static("page.js"),
        style=static("page.css"),
    )


def _clients(report: Report) -> Iterator[dict[str, str]]:
    """The client view of one run per network and heterogeneity, of FedVSR if there is one."""
    trained = set(report.results.clients["run_id"])
    runs = report.gathered.runs[report.gathered.runs["run_id"].isin(trained)]
    runs = runs.assign(other=~runs["algorithm"].isin(VARIANTS)).sort_values(["other", "seed"])
    chosen = runs.drop_duplicates(["model", "heterogeneity"]).to_dict("records")
    by_setting = {(row["model"], row["heterogeneity"]): row for row in chosen}
    for model in ordered(runs["model"], "model"):
        for heterogeneity in ordered(runs["heterogeneity"], "heterogeneity"):
            if row := by_setting.get((model, heterogeneity)):
                title = title_of(row)
                figure, buffer = draw_clients(report.results, row["run_id"], title), io.BytesIO()
                figure.savefig(buffer, format="png", dpi=90)
                yield {"title": title, "picture": _as_url("png", buffer.getvalue())}


def _charts(report: Report) -> dict[str, Any]:
    points, styles = report.points, line_styles(report.gathered)
    panels = [
        {
            "model": model,
            "title": f"{testset}, {setting_name(heterogeneity)}",
            "metric": metric,
            **_panel(selected, styles),
        }
        for model in ordered(points["model"], "model")
        for metric in METRICS
        for heterogeneity in ordered(points["heterogeneity"], "heterogeneity")
        for testset in ordered(points["testset"], "testset")
        if not (selected := _select(points, model, metric, heterogeneity, testset)).empty
    ]
    return {
        "panels": panels,
        "metrics": {
            m: {
                "name": METRICS[m].label,
                "label": METRICS[m].heading,
                "decimals": METRICS[m].decimals,
            }
            for m in METRICS
            if (points["metric"] == m).any()
        },
    }


def _select(
    points: pd.DataFrame, model: str, metric: str, heterogeneity: str, testset: str
) -> pd.DataFrame:
    return points[
        (points["model"] == model)
        & (points["metric"] == metric)
        & (points["heterogeneity"] == heterogeneity)
        & (points["testset"] == testset)
    ]


def _panel(points: pd.DataFrame, styles: dict[str, LineStyle]) -> dict[str, Any]:
    rounds = sorted(points["round_idx"].unique().tolist())
    lines = []
    for method in method_order(points):
        rows = points[points["method"] == method].set_index("round_idx").reindex(rounds)
        low, high = rows["mean"] - rows["std"], rows["mean"] + rows["std"]
        banded = bool(rows["std"].notna().any())
        first = points[points["method"] == method].iloc[0]
        lines.append(
            {
                "method": method,
                "state": first["state"],
                "ours": bool(first["algorithm"] in VARIANTS),
                "seeds": int(rows["num_seeds"].max()),
                "colour": styles[method].colour,
                "dashes": list(styles[method].dashes),
                "mean": _numbers(rows["mean"]),
                "low": _numbers(low) if banded else None,
                "high": _numbers(high) if banded else None,
            }
        )
    return {"rounds": rounds, "lines": lines, "bicubic": float(points["bicubic"].mean())}


def _numbers(values: pd.Series[float]) -> list[float | None]:
    return [None if pd.isna(value) else round(float(value), 6) for value in values]


def _scenes(frames: tuple[Frame, ...]) -> tuple[list[dict[str, Any]], str]:
    """The frames with their pictures, and a note for the reader."""
    total_bytes = sum(path.stat().st_size for frame in frames for _, path in _paths(frame))
    lossless = total_bytes <= _LOSSLESS_BYTES
    scenes, used = list[dict[str, Any]](), 0
    for frame in frames:
        gt = read_picture(frame.gt)
        pictures = list[dict[str, Any]]()
        for name, path in _paths(frame):
            psnr_db = None if path == frame.gt else float(psnr(read_picture(path), gt))
            pictures.append({"name": name, "psnr_db": psnr_db, "url": _data_url(path, lossless)})
        size = sum(len(picture["url"]) for picture in pictures)
        if scenes and used + size > _MOST_BYTES:
            continue
        used += size
        setting = f"{frame.model}, {setting_name(frame.heterogeneity)}"
        scenes.append(
            {
                "name": f"{setting}: {frame.clip_id}, frame {frame.frame_idx} (seed {frame.seed})",
                "width": gt.shape[1],
                "height": gt.shape[0],
                "pictures": pictures,
            }
        )
    notes = []
    if not lossless:
        notes.append("Pictures are compressed here; PSNR is that of the originals.")
    if len(scenes) < len(frames):
        notes.append(f"{len(frames) - len(scenes)} more frames are in the folders of the runs.")
    return scenes, " ".join(notes)


def _paths(frame: Frame) -> Iterator[tuple[str, Path]]:
    yield "LQ (bicubic)", frame.bicubic
    yield from frame.methods.items()
    yield "Ground truth", frame.gt


def _data_url(path: Path, lossless: bool) -> str:
    if lossless:
        kind, content = "png", path.read_bytes()
    else:
        buffer = io.BytesIO()
        Image.open(path).convert("RGB").save(buffer, format="webp", quality=_QUALITY)
        kind, content = "webp", buffer.getvalue()
    return _as_url(kind, content)


def _as_url(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _json(data: object) -> str:
    # `</script>` in a name must not end the script element.
    return json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
