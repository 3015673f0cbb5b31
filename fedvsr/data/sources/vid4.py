"""Find the four clips of Vid4, which differ in size and length, in the usual layouts.

These are `GT/<clip>/*.png` with `BIx4/<clip>/*.png` or `BDx4/...` beside it, or the clips' folders
alone.
"""

from __future__ import annotations

from pathlib import Path

from fedvsr.data.clips import Degradation
from fedvsr.data.recordings import Task, picture_folder, require_match
from fedvsr.errors import UserError

# The clips and their numbers of frames.
CLIPS = {"calendar": 41, "city": 34, "foliage": 49, "walk": 47}


def recordings(
    source: Path, *, scale: int = 4, degradation: Degradation = "bi", make_lq: bool = False
) -> tuple[list[Task], list[str]]:
    """The clips of Vid4 that the folder has, by name, and notes.

    Args:
        source: the folder that has `GT`, or the clips' own folders.
        scale: the reduction; published low-resolution frames lie in, e.g., `BIx4`.
        degradation: `bi` or `bd`: which published frames are used, or how frames are made.
        make_lq: make low-resolution frames even if the folder has them.

    Raises:
        UserError: the folder has none of the clips, or a frame is missing.
    """
    gt_root = source / "GT" if (source / "GT").is_dir() else source
    lq_root = source / f"{degradation.upper()}x{scale}"
    has_lq = lq_root.is_dir() and not make_lq
    tasks, notes = [], []
    for name, official in CLIPS.items():
        if not (gt_root / name).is_dir():
            notes.append(f"{gt_root} has no clip {name}")
            continue
        gt = picture_folder(gt_root / name)
        if gt.num_frames != official:
            notes.append(f"{gt.path} has {gt.num_frames} frames, the published clip {official}")
        lq = None
        if has_lq:
            if not (lq_root / name).is_dir():
                raise UserError(
                    f"{lq_root} has no clip {name}, but {gt_root} has; complete it, or make all "
                    "low-resolution frames with --make-lq"
                )
            lq = picture_folder(lq_root / name)
            require_match(gt, lq, scale)
        tasks.append(Task(name, "vid4", gt, lq, gt.num_frames))
    if not tasks:
        raise UserError(
            f"{source} has none of GT/{', GT/'.join(CLIPS)}, with or without GT/; name the "
            "folder of Vid4"
        )
    return tasks, notes
