"""Write tiny data sets in the layouts of the published ones."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from fedvsr.data.clips import Frames
from fedvsr.data.degrade import bicubic_downscale, quantise
from tests.conftest import moving_texture
from tests.unit.data.clips import write_clip, write_pictures

HEIGHT, WIDTH, FRAMES = 16, 24, 3
Shape = tuple[int, int, int]
"""Frames, height and width."""


def texture(
    seed: int, num_frames: int = FRAMES, height: int = HEIGHT, width: int = WIDTH
) -> Frames:
    return moving_texture(num_frames, height, width, seed)


def reduced(frames: Frames, scale: int = 4) -> Frames:
    return np.stack(
        [quantise(bicubic_downscale(f.astype(np.float32) / 255, scale)) for f in frames]
    )


def reds(
    root: Path,
    train: Iterable[int] = (0, 11),
    val: Iterable[int] = (0,),
    *,
    with_lq: bool = True,
    unpacked: bool = False,
    shape: Shape = (FRAMES, HEIGHT, WIDTH),
) -> Path:
    """Write clips of REDS; `unpacked` adds the folders `train/` and `val/` of the archives."""
    for part, clips, first in (("train", train, 0), ("val", val, 240)):
        base = root / part if unpacked else root
        for clip in clips:
            frames, name = texture(first + clip, *shape), f"{clip:03d}"
            write_pictures(base / f"{part}_sharp" / name, frames, "{:08d}.png")
            if with_lq:
                low = base / f"{part}_sharp_bicubic" / "X4" / name
                # Half as bright, so that they differ from frames that are made.
                write_pictures(low, reduced(frames) // 2, "{:08d}.png")
    return root


VID4_SIZES = {"calendar": (16, 20), "city": (16, 24), "foliage": (12, 20), "walk": (12, 24)}


def vid4(root: Path, low: str | None = "BIx4", shape: Shape | None = None) -> Path:
    for seed, (name, size) in enumerate(VID4_SIZES.items()):
        frames = texture(500 + seed, *(shape or (2 + seed, *size)))
        write_pictures((root / "GT" if low else root) / name, frames, "{:08d}.png")
        if low:
            write_pictures(root / low / name, reduced(frames) // 2, "{:08d}.png")
    return root


def kinetics(
    root: Path,
    classes: Sequence[str] = ("archery", "yoga"),
    videos: int = 4,
    shape: Shape = (4, HEIGHT, WIDTH),
) -> tuple[Path, Path]:
    """Write videos, one folder per class, and annotations; return the folder and the table."""
    lines = ["label,youtube_id,time_start,time_end,split"]
    for label in classes:
        folder = root / "train" / label.replace(" ", "_")
        folder.mkdir(parents=True)
        for i in range(videos):
            youtube_id = f"-{label[:3]}_{i}"
            frames = texture(hash_of(label) + i, *shape)
            write_clip(folder / f"{youtube_id}_{10 * i:06d}_{10 * i + 10:06d}.mp4", frames)
            lines.append(f"{label},{youtube_id},{10 * i},{10 * i + 10},train")
    table = root / "train.csv"
    table.write_text("\n".join(lines) + "\n")
    return root, table


def hash_of(label: str) -> int:
    return sum(map(ord, label))
