"""The same crop of a test frame from each method, with the PSNR of each crop."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill

import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fedvsr.errors import UserError
from fedvsr.metrics.fidelity import psnr
from fedvsr.report.figures import Picture, box_sums, read_picture
from fedvsr.report.gather import GROUP, Gathered, method_order, ordered, setting_name
from fedvsr.report.saved_frames import saved_frames

_COLUMNS = 4
# Characters in a line above a crop.
_TITLE_WIDTH = 26


@dataclass(frozen=True)
class Crop:
    """A square of a frame, in pixels of the ground truth."""

    x: int
    y: int
    size: int

    def of(self, picture: Picture) -> Picture:
        """Cut the square out of a picture (H, W, 3)."""
        return picture[self.y : self.y + self.size, self.x : self.x + self.size]


@dataclass(frozen=True)
class Frame:
    """A test frame, with the pictures that methods made of it."""

    model: str
    heterogeneity: str
    testset: str
    clip_id: str
    frame_idx: int
    seed: int
    bicubic: Path
    gt: Path
    methods: Mapping[str, Path]
    """The super-resolved picture by method, in the order of a table's rows."""
    degradation: str = ""
    """Its name, if the clip is scored under several; `clip_id` is then `CLIP@DEGRADATION`."""


def frames(gathered: Gathered, folders: Mapping[str, Path]) -> Iterator[Frame]:
    """The test frames with pictures of finished runs, one per network, heterogeneity and clip.

    Of a clip that is scored under several degradations, one for each.

    All pictures of a frame are of one seed, because runs of one seed share their random draws: the
    seed with most methods, or the lowest of several.
    """
    clips = gathered.scores[["run_id", "clip_id", "testset"]].drop_duplicates()
    # Others have pictures of an earlier round, which would be compared with the last one's.
    finished = gathered.runs[gathered.runs["status"] == "finished"]
    known = set(clips["clip_id"])
    pictures = [
        {**row, **picture}
        for row in clips.merge(finished, on="run_id").to_dict("records")
        for picture in _pictures(folders[row["run_id"]], row["clip_id"], known)
    ]
    if not pictures:
        return
    table = pd.DataFrame(pictures)
    for key in _keys(table):
        of_clip = table[(table[[*GROUP, "clip_id"]] == list(key)).all(axis=1)]
        seeds = of_clip.groupby("seed")["method"].nunique()
        seed = int(seeds[seeds == seeds.max()].index.min())
        of_seed = of_clip[of_clip["seed"] == seed]
        # Runs with other evaluation settings may have saved another frame.
        of_seed = of_seed[of_seed["frame"] == of_seed["frame"].mode().iloc[0]]
        paths = of_seed.set_index(["method", "kind"])["path"]
        methods = [m for m in method_order(of_seed) if (m, "sr") in paths.index]
        if methods:
            first = methods[0]
            yield Frame(
                *key,
                frame_idx=int(of_seed["frame"].iloc[0]),
                seed=seed,
                bicubic=paths[first, "bicubic"],
                gt=paths[first, "gt"],
                methods={method: paths[method, "sr"] for method in methods},
                degradation=str(of_seed["degradation"].iloc[0]),
            )


def widest(frame: Frame) -> tuple[Crop, float]:
    """The square in which the methods' squared errors differ most, and the difference per pixel."""
    gt = read_picture(frame.gt).astype(np.float64)
    size = max(32, min(gt.shape[:2]) // 6)
    errors: list[npt.NDArray[np.float64]] = [
        box_sums(np.square(read_picture(path) - gt).sum(-1), size)
        for path in frame.methods.values()
    ]
    if len(errors) == 1:
        # A single method is compared with bicubic.
        errors.append(box_sums(np.square(read_picture(frame.bicubic) - gt).sum(-1), size))
    spread = np.ptp(np.stack(errors), axis=0)
    y, x = np.unravel_index(int(spread.argmax()), spread.shape)
    return Crop(int(x), int(y), size), float(spread.max()) / size**2


def choose(
    candidates: list[Frame], crop: Crop | None = None, clip_id: str | None = None
) -> tuple[Frame, Crop] | None:
    """The requested frame and crop, or those in which the methods differ most.

    Raises:
        UserError: the crop is not within the frame.
    """
    if clip_id is not None:
        candidates = [frame for frame in candidates if frame.clip_id == clip_id]
    if not candidates:
        return None
    spreads = [widest(frame) for frame in candidates]
    best = max(range(len(candidates)), key=lambda i: spreads[i][1])
    frame = candidates[best]
    if crop is None:
        return frame, spreads[best][0]
    height, width = read_picture(frame.gt).shape[:2]
    if crop.x + crop.size > width or crop.y + crop.size > height:
        raise UserError(
            f"--crop {crop.x},{crop.y},{crop.size} leaves the frame of {frame.clip_id}, which is "
            f"{width} x {height} pixels"
        )
    return frame, crop


def draw_crops(frame: Frame, crop: Crop) -> Figure:
    """Draw the frame with the crop marked, and the crop of LQ, each method and ground truth.

    Each crop is enlarged and shows its own PSNR.
    """
    gt = read_picture(frame.gt)
    pictures = {"LQ (bicubic)": read_picture(frame.bicubic)}
    pictures |= {method: read_picture(path) for method, path in frame.methods.items()}
    psnrs = {name: float(psnr(crop.of(p), crop.of(gt))) for name, p in pictures.items()}
    cells = [*pictures, "Ground truth"]
    rows = -(-len(cells) // _COLUMNS)
    height, width = gt.shape[:2]
    across = min(2.3 * rows * width / height, 4.8)
    figure = Figure(figsize=(2.0 * _COLUMNS + across, 2.4 * rows + 0.3), layout="constrained")
    parts = figure.subfigures(1, 2, width_ratios=[across, 2.0 * _COLUMNS], squeeze=False)
    left, right = parts.ravel()
    whole = left.subplots()
    whole.imshow(gt)
    square = Rectangle((crop.x, crop.y), crop.size, crop.size, fill=False, ec="yellow", lw=1.5)
    whole.add_patch(square)
    whole.set_title(fill(f"{frame.clip_id}, frame {frame.frame_idx}", 36), fontsize=10)
    text = f"right: {crop.size} x {crop.size} of {width} x {height} pixels, enlarged"
    whole.set_xlabel(f"{text}\nwith the PSNR of this part", fontsize=9)
    grid = right.subplots(rows, _COLUMNS, squeeze=False).ravel()
    for axes, name in zip(grid, cells, strict=False):
        axes.imshow(crop.of(pictures.get(name, gt)), interpolation="nearest")
        title = fill(name, _TITLE_WIDTH, break_long_words=False)
        axes.set_title(title, fontsize=8 if "\n" in title else 9)
        if name in psnrs:
            axes.set_xlabel(f"{psnrs[name]:.2f} dB", fontsize=9)
    for axes in grid[len(cells) :]:
        axes.set_axis_off()
    for axes in (whole, *grid):
        axes.set(xticks=[], yticks=[])
    where = f"{frame.model}, {frame.testset}, {setting_name(frame.heterogeneity)}"
    figure.suptitle(f"{where}, seed {frame.seed}", fontsize=11)
    return figure


def _keys(table: pd.DataFrame) -> Iterator[tuple[str, str, str, str]]:
    for model in ordered(table["model"], "model"):
        for heterogeneity in ordered(table["heterogeneity"], "heterogeneity"):
            for testset in ordered(table["testset"], "testset"):
                rows = table[(table[GROUP] == [model, heterogeneity, testset]).all(axis=1)]
                for clip_id in sorted(rows["clip_id"].unique()):
                    yield model, heterogeneity, testset, clip_id


def _pictures(folder: Path, clip_id: str, known: set[str]) -> Iterator[dict[str, object]]:
    """The pictures of a clip. `known`: the ids of all clips, any of which may hold an `@`."""
    for saved in saved_frames(folder):
        clip, degradation = saved.clip_id, ""
        if saved.clip_id not in known:
            clip, _, degradation = saved.clip_id.rpartition("@")
        if clip == clip_id:
            named = {"clip_id": saved.clip_id, "degradation": degradation}
            yield {**named, "frame": saved.frame_idx, "kind": saved.kind, "path": saved.path}
