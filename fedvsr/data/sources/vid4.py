"""Vid4: four clips, each of its own size and length, in the layouts that are about.

`GT/<clip>/*.png` with `BIx4/<clip>/*.png` or `BDx4/...` beside it, or the clips' folders alone.
"""

from __future__ import annotations

from pathlib import Path

from fedvsr.data.clips import Degradation
from fedvsr.data.recordings import Task, picture_folder, require_match
from fedvsr.errors import UserError

# And how many frames each has.
CLIPS = {"calendar": 41, "city": 34, "foliage": 49, "walk": 47}


def recordings(
    source: Path, *, scale: int = 4, degradation: Degradation = "bi", make_lq: bool = False
) -> tuple[list[Task], list[str]]:
    """The clips there are, by name, and what there is to note.

    Args:
        source: the folder that holds `GT`, or the clips' own folders.
        scale: the factor; given low-resolution frames are those of e.g. `BIx4`.
        degradation: `bi` or `bd`: which given frames are used, or how they are made.
        make_lq: make the low-resolution frames even where they are given.

    Raises:
        UserError: there is none of the clips, or a frame is missing.
    """
    gt_root = source / "GT" if (source / "GT").is_dir() else source
    lq_root = source / f"{degradation.upper()}x{scale}"
    given = lq_root.is_dir() and not make_lq
    tasks, notes = [], []
    for name, official in CLIPS.items():
        if not (gt_root / name).is_dir():
            notes.append(f"{gt_root} has no clip {name}")
            continue
        gt = picture_folder(gt_root / name)
        if gt.num_frames != official:
            notes.append(f"{gt.path} has {gt.num_frames} frames, the published one {official}")
        lq = None
        if given:
            if not (lq_root / name).is_dir():
                raise UserError(
                    f"{lq_root} has no clip {name}, and {gt_root} has; complete it, or make all "
                    "low-resolution frames with --make-lq"
                )
            lq = picture_folder(lq_root / name)
            require_match(gt, lq, scale)
        tasks.append(Task(name, "vid4", gt, lq, gt.num_frames))
    if not tasks:
        raise UserError(
            f"{source} holds none of GT/{', GT/'.join(CLIPS)}, with or without GT/; name the "
            "folder of Vid4"
        )
    return tasks, notes
