"""The pictures of a finished run: `curves.png` and `comparison.png`."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.inference.scores import scored_part
from fedvsr.metrics import BICUBIC
from fedvsr.metrics.fidelity import psnr
from fedvsr.records import Results, load_results
from fedvsr.report.gather import mean_scores

Picture = npt.NDArray[np.uint8]

# Blue and orange of the Okabe-Ito palette, which colour-blind readers can tell apart.
_OURS, _BASELINE = "#0072B2", "#D55E00"
# Lines of the means of a run's test sets.
_DASHES = ("-", "-.", ":")
_KINDS = ("#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_TITLES = {"bicubic": "Bicubic", "sr": "Super-resolved", "gt": "Ground truth"}


class NotebookFigure(Figure):
    """A figure that a notebook shows, without pyplot."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png", dpi=90)
        return buffer.getvalue()


def draw(folder: Path) -> list[Path]:
    """Draw the pictures of the run in `folder` and return their paths."""
    return [draw_curves(folder), draw_comparison(folder)]


def draw_curves(folder: Path) -> Path:
    """Write `curves` to `curves.png`."""
    return save(curves(folder), folder / "curves.png")


def curves(folder: Path) -> Figure:
    """PSNR over bicubic and local loss by round.

    Raises:
        UserError: the run has no score yet.
    """
    results = load_results(folder)
    if results.evaluations.empty:
        raise UserError(f"{folder.name} has no score yet; the first follows the start of a run")
    scores = _with_gain(results.evaluations)
    rounds = results.rounds.dropna(subset=["loss"])
    figure = NotebookFigure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)

    # If each client has a network, a clip's line is the mean of theirs.
    columns = ["gain_db", "of_bicubic_db"]
    by_clip = mean_scores(scores, ["test_set", "clip_id", "round_idx"], columns)
    for i, (_, clip) in enumerate(by_clip.groupby(["test_set", "clip_id"], sort=False)):
        label = None if i else "Each test clip"
        left.plot(clip["round_idx"], clip["gain_db"], color=_OURS, alpha=0.35, lw=1, label=label)
    sets = scores["test_set"].unique()
    bicubic = list[str]()
    for name, dashes in zip(sets, cycle(_DASHES), strict=False):
        of_set = mean_scores(scores[scores["test_set"] == name], ["round_idx"], columns)
        of_bicubic_db = f"{of_set['of_bicubic_db'].iloc[-1]:.2f} dB"
        bicubic.append(of_bicubic_db if len(sets) == 1 else f"{name} {of_bicubic_db}")
        left.plot(
            of_set["round_idx"],
            of_set["gain_db"],
            color=_OURS,
            lw=2,
            ls=dashes,
            marker="o",
            ms=3,
            label=f"Mean of {name}",
        )
        own = scores[scores["test_set"] == name]
        kinds = own["degradation"].dropna().unique() if len(sets) == 1 else []
        for kind, colour in zip(kinds if len(kinds) > 1 else [], cycle(_KINDS), strict=False):
            of_kind = mean_scores(own[own["degradation"] == kind], ["round_idx"], columns)
            left.plot(of_kind["round_idx"], of_kind["gain_db"], color=colour, lw=1.5, label=kind)
    label = f"Bicubic ({', '.join(bicubic)})"
    left.axhline(0, color=_BASELINE, lw=1.5, ls="--", label=label)
    part = _part(results)
    title = f"Test clips ({part})" if part else "Test clips"
    left.set(xlabel="Round", ylabel="RGB PSNR over bicubic (dB)", title=title)
    left.legend(frameon=False)

    clients = results.clients
    right.scatter(clients["round_idx"], clients["loss"], s=12, color="0.65", label="Client")
    right.plot(rounds["round_idx"], rounds["loss"], color=_OURS, lw=2, label="Mean")
    right.set(xlabel="Round", ylabel="Local loss", title="Sampled clients")
    right.legend(frameon=False)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        axes.xaxis.get_major_locator().set_params(integer=True)
    run = results.runs.iloc[0]
    figure.suptitle(
        f"{run['algorithm']} · {run['model']} · {run['num_clients']} clients · seed {run['seed']}"
    )
    return figure


def draw_comparison(folder: Path) -> Path:
    """Draw a test frame from bicubic, super-resolved and ground truth, into `comparison.png`.

    Below each frame is the part that gained most over bicubic, or lost least, enlarged. Frames and
    parts show their own PSNR.
    """
    results = load_results(folder)
    scores = results.evaluations
    # The pictures are the global network's, or the first client's.
    scores = scores[scores["client_id"].fillna(0) == 0]
    scores = scores[scores["round_idx"] == scores["round_idx"].max()]
    by_gain = _with_gain(scores).sort_values("gain_db")
    best = by_gain.iloc[-1]
    clip_id = str(best["clip_id"])
    if by_gain.groupby("clip_id")["degradation"].nunique().max() > 1:
        clip_id = f"{clip_id}@{best['degradation']}"
    pictures = {kind: _picture(folder, clip_id, kind) for kind in _TITLES}
    top, left, size = _best_crop(pictures)
    crop = slice(top, top + size), slice(left, left + size)

    height, width = pictures["gt"].shape[:2]
    figure = Figure(figsize=(12, 4 * height / width + 4.6), layout="constrained")
    rows = figure.subplots(2, 3, height_ratios=[height / width, 1])
    for column, (kind, title) in enumerate(_TITLES.items()):
        picture, gt = pictures[kind], pictures["gt"]
        whole, zoom = rows[0][column], rows[1][column]
        whole.imshow(picture)
        whole.add_patch(Rectangle((left, top), size, size, fill=False, ec="yellow", lw=1.2))
        whole.set_title(title)
        whole.set_xlabel(_psnr_label(picture, gt, kind))
        zoom.imshow(picture[crop], interpolation="nearest")
        zoom.set_xlabel(_psnr_label(picture[crop], gt[crop], kind))
    for axes in rows.flat:
        axes.set(xticks=[], yticks=[])
    psnr_db = {k: float(psnr(p[crop], pictures["gt"][crop])) for k, p in pictures.items()}
    which = "gained most" if psnr_db["sr"] > psnr_db["bicubic"] else "lost least"
    where = ", ".join(filter(None, (clip_id, "middle frame", _part(results))))
    figure.suptitle(f"{where}; below: the {size} x {size} pixels that {which}, enlarged")
    return save(figure, folder / "comparison.png")


def _best_crop(pictures: dict[str, Picture]) -> tuple[int, int, int]:
    """Corner and size of the square whose squared error is lowest compared with bicubic's."""
    gt = pictures["gt"].astype(np.float64)
    gain = np.square(pictures["bicubic"] - gt).sum(-1) - np.square(pictures["sr"] - gt).sum(-1)
    size = max(32, min(gt.shape[:2]) // 5)
    boxes = box_sums(gain, size)
    top, left = np.unravel_index(int(boxes.argmax()), boxes.shape)
    return int(top), int(left), size


def box_sums(values: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.float64]:
    """Sums over each square of `size` by `size` pixels, by its upper left corner."""
    sums = np.pad(values.cumsum(0).cumsum(1), ((1, 0), (1, 0)))
    boxes: npt.NDArray[np.float64] = (
        sums[size:, size:] - sums[:-size, size:] - sums[size:, :-size] + sums[:-size, :-size]
    )
    return boxes


def _part(results: Results) -> str:
    """The part of each frame that the run scored, in words; empty for the whole frame."""
    config = results.runs["config"].iloc[0]
    settings: Mapping[str, Any] = json.loads(config) if config else {}
    return scored_part(settings.get("evaluation", {}).get("crop"))


def _psnr_label(picture: Picture, gt: Picture, kind: str) -> str:
    return "" if kind == "gt" else f"{psnr(picture, gt):.2f} dB"


def _with_gain(scores: pd.DataFrame) -> pd.DataFrame:
    """Scores with bicubic's PSNR and the gain over it: of luma if an older record has no other."""
    name = "psnr_db" if scores["psnr_db"].notna().any() else "psnr_y_db"
    of_bicubic_db = scores[BICUBIC + name]
    return scores.assign(of_bicubic_db=of_bicubic_db, gain_db=scores[name] - of_bicubic_db)


def _picture(folder: Path, clip_id: str, kind: str) -> Picture:
    (path,) = (folder / "frames").glob(f"{clip_id}_[0-9]*_{kind}.png")
    return read_picture(path)


def read_picture(path: Path) -> Picture:
    """A picture as uint8 RGB (H, W, 3)."""
    return np.asarray(Image.open(path).convert("RGB"))


def save(figure: Figure, path: Path) -> Path:
    """Write a figure in the format of the path's suffix, completely or not at all."""
    kind = path.suffix.removeprefix(".")
    # With a date, equal figures would differ.
    metadata = {"CreationDate": None} if kind == "pdf" else None
    with mpl.rc_context({"savefig.dpi": 130}):
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata=metadata)
    with replacing(path) as aside:
        aside.write_bytes(buffer.getvalue())
    return path
