"""Find the clips of REDS (Nah et al. 2019) as it is published, regrouped into 270 clips.

`train_sharp/<clip>/<frame>.png` and `val_sharp/...` hold the ground truth,
`train_sharp_bicubic/X4/...` and `val_sharp_bicubic/X4/...` the low-resolution frames. Each may lie
in `train/` or `val/`, as the archives unpack. The 30 clips of the second part get the numbers 240
to 269.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from fedvsr.data.clips import Degradation
from fedvsr.data.recordings import Task, picture_folder, require_match
from fedvsr.errors import UserError

NUM_TRAIN, NUM_VAL = 240, 30


def recordings(
    source: Path,
    *,
    scale: int = 4,
    degradation: Degradation = "bi",
    num_frames: int = 100,
    only: Collection[str] = (),
    make_lq: bool = False,
) -> tuple[list[Task], list[str]]:
    """The clips of REDS, by their number after regrouping, and notes.

    Args:
        source: the folder that has `train_sharp` or `val_sharp`.
        scale: the reduction; published low-resolution frames lie in `X<scale>`.
        degradation: with `bi`, published low-resolution frames are used if the folder has them.
        num_frames: frames that every clip must have, numbered from 0.
        only: ids of the clips to use, e.g. `REDS4`; all if empty.
        make_lq: make low-resolution frames even if the folder has them.

    Raises:
        UserError: the folder has another layout, or a clip or a frame is missing.
    """
    truth, low = dict[str, Path](), dict[str, Path]()
    for part, first in (("train", 0), ("val", NUM_TRAIN)):
        for path in _clips(source, part, f"{part}_sharp"):
            # If the set is regrouped already, its first part includes 240 to 269.
            truth.setdefault(f"{first + int(path.name):03d}", path)
        if degradation == "bi" and not make_lq:
            for path in _clips(source, part, f"{part}_sharp_bicubic/X{scale}"):
                low.setdefault(f"{first + int(path.name):03d}", path)
    if not truth:
        raise UserError(
            f"{source} has neither train_sharp/000 nor val_sharp/000 (nor in train/ and val/); "
            "name the folder that REDS was unpacked into"
        )
    if absent := sorted(set(only) - set(truth)):
        raise UserError(f"{source} has no REDS clip {', '.join(absent)}; its clips are 000 to 269")
    wanted = [clip_id for clip_id in sorted(truth) if clip_id in only or not only]
    if low and (absent := [clip_id for clip_id in wanted if clip_id not in low]):
        raise UserError(
            f"{source} lacks the low-resolution frames of {_some(absent)}, and has those of other "
            "clips; complete them, or make all of them with --make-lq"
        )
    notes = []
    missing = sorted({f"{i:03d}" for i in range(NUM_TRAIN + NUM_VAL)} - set(truth))
    if missing and not only:
        notes.append(f"{len(missing)} of the 270 clips are missing in {source}: {_some(missing)}")
    tasks = []
    for clip_id in wanted:
        gt = picture_folder(truth[clip_id])
        if gt.num_frames != num_frames:
            raise UserError(
                f"{gt.path} has {gt.num_frames} frames, not {num_frames}; copy it again, or give "
                "the number with --frames"
            )
        if gt.files[0].stem.strip("0"):
            raise UserError(f"{gt.path} starts at {gt.files[0].name}, not at 0; copy it again")
        lq = picture_folder(low[clip_id]) if low else None
        if lq is not None:
            require_match(gt, lq, scale)
        tasks.append(Task(clip_id, "reds", gt, lq, gt.num_frames))
    return tasks, notes


def _clips(source: Path, part: str, name: str) -> list[Path]:
    for folder in (source / name, source / part / name):
        if folder.is_dir():
            return sorted(p for p in folder.iterdir() if p.name.isdecimal() and p.is_dir())
    return []


def _some(names: list[str]) -> str:
    shown = ", ".join(names[:8])
    return shown if len(names) <= 8 else f"{shown} and {len(names) - 8} more"
