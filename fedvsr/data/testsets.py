"""Names of test sets, by which scores are kept apart.

All four clips of REDS4 (000, 011, 015, 020) in one data set are `REDS4`, and all four of Vid4
(calendar, city, foliage, walk) are `Vid4`. Other clips have the name of their data set: `held-out`
for those of `data.held_out` or `data.videos`, and the name of the folder for those of `data.test`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from fedvsr.data.config import REDS4, DataConfig, is_named

HELD_OUT = "held-out"
VID4 = ("calendar", "city", "foliage", "walk")
PUBLISHED = {"REDS4": REDS4, "Vid4": VID4}


def name_clips(data_set: str, clip_ids: Iterable[str]) -> dict[str, str]:
    """The test set of each clip of one data set.

    Args:
        data_set: the name of the data set.
        clip_ids: its test clips.
    """
    ids = list(clip_ids)
    names = dict.fromkeys(ids, data_set)
    for name, clips in PUBLISHED.items():
        if set(clips) <= set(ids):
            names |= dict.fromkeys(clips, name)
    return names


def folder_names(folders: Sequence[str]) -> list[str]:
    """A name for each folder of `data.test`: its last part, or more parts to tell it from others.

    A folder called `Vid4` that lacks a clip of Vid4 is not that set either: `sets-Vid4`.
    """
    taken = {HELD_OUT, *PUBLISHED}
    parts = [PurePath(folder).parts for folder in folders]
    names = list[str]()
    for length in range(1, max(map(len, parts), default=0) + 1):
        names = ["-".join(part[-length:]).strip("/-") for part in parts]
        if len({*names, *taken}) == len({*folders}) + len(taken):
            break
    return names


def planned_names(config: DataConfig, clips_of: Mapping[str, Iterable[str] | None]) -> list[str]:
    """Names that the test sets of a configuration have, or can have if clips are not known yet.

    Args:
        config: the `data` section.
        clips_of: the ids of the clips of each folder of `data.test`; None if they are not known.
    """
    names = dict[str, None]()
    if config.videos:
        names[HELD_OUT] = None
    held_out = REDS4 if config.held_out == "reds4" else config.held_out
    names |= dict.fromkeys(name_clips(HELD_OUT, held_out).values())
    for folder, name in zip(config.test, folder_names(config.test), strict=True):
        clips = clips_of[folder]
        known = [name, *PUBLISHED] if clips is None else name_clips(name, clips).values()
        names |= dict.fromkeys(known)
    return list(names)


def recorded_names(config: Mapping[str, Any], clip_ids: Iterable[str]) -> dict[str, str]:
    """The test set of each clip of a run whose records do not name it: schema versions 1 to 5.

    The folder of a clip is not known, so clips of several folders share one name.

    Args:
        config: the run's configuration.
        clip_ids: its test clips.
    """
    remaining = dict.fromkeys(clip_ids)
    sets = {c: n for c, n in name_clips("", remaining).items() if n}
    data = config.get("data", {})
    held_out = data.get("held_out") or []
    patterns = REDS4 if held_out == "reds4" else held_out
    names = [PurePath(path).name for path in data.get("test") or []]
    # The clips of a folder such as `vid4_x4` are in their set already.
    names = [n for n in names if n.lower()[:4] not in {name.lower()[:4] for name in sets.values()}]
    other = " + ".join(names) or "test"
    for clip_id in remaining:
        if clip_id not in sets:
            own = data.get("videos") or any(is_named(clip_id, pattern) for pattern in patterns)
            sets[clip_id] = HELD_OUT if own else other
    return sets


def listed_clips(folder: Path) -> list[str] | None:
    """The ids of the clips of a data set that is not read yet; None if the folder is missing."""
    from fedvsr.data.store import read_store

    if not folder.is_dir():
        return None
    store = read_store(folder)
    if store is not None:
        return [clip.clip_id for clip in store]
    return [path.stem for path in folder.iterdir()]
