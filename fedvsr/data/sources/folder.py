"""Find the recordings in a user's own folder of videos and picture folders.

They lie at `DIR/<label>/<video>` and `DIR/<label>/<pictures>/*.png`. The label of a video or a
folder of pictures that lies directly in `DIR` is its own name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from fedvsr.data import pictures
from fedvsr.data.frames import natural
from fedvsr.data.prepare import num_cores
from fedvsr.data.recordings import Task, recording
from fedvsr.errors import UserError

VIDEOS = frozenset(
    {".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts"}
    | {".ogv", ".ts", ".webm", ".wmv", ".y4m"}
)


def recordings(
    source: Path, *, clip_frames: int | None = None, min_frames: int = 2
) -> tuple[list[Task], list[str]]:
    """The recordings of a folder, sorted by label and name, and notes.

    Args:
        source: the folder.
        clip_frames: frames per clip if recordings are cut; None: each is one clip.
        min_frames: raise if a recording has fewer; with `clip_frames`, that number counts.

    Raises:
        UserError: the folder has no recordings, or one cannot be read or is too short.
    """
    paths, notes = dict[Path, str](), list[str]()
    for entry in _entries(source):
        if is_recording(entry):
            paths[entry] = entry.stem if entry.is_file() else entry.name
        elif entry.is_dir():
            inside = [path for path in _entries(entry) if is_recording(path)]
            paths |= dict.fromkeys(inside, entry.name)
            if not inside:
                notes.append(f"{entry} has neither videos nor folders of pictures; left out")
        else:
            notes.append(f"{entry} is not a video by its name; left out")
    if not paths:
        raise UserError(f"{source} and its sub-folders have neither videos nor folders of pictures")
    by_id = defaultdict[str, list[Path]](list)
    for path in paths:
        name = path.stem if path.is_file() else path.name
        by_id[name if path.parent == source else f"{path.parent.name}-{name}"].append(path)
    for clip_id, same in by_id.items():
        if len(same) > 1:
            names = " and ".join(str(path) for path in same)
            raise UserError(f"{names} would both become clip {clip_id}; rename one of them")

    def task(item: tuple[str, list[Path]]) -> Task:
        clip_id, (path,) = item
        return recording(path, clip_id, paths[path], clip_frames=clip_frames, min_frames=min_frames)

    with ThreadPoolExecutor(num_cores()) as pool:
        return list(pool.map(task, by_id.items())), notes


def is_recording(path: Path) -> bool:
    """Whether a path is a video, by its suffix, or a folder that contains pictures."""
    if path.is_dir():
        return any(
            p.suffix.lower() in pictures.SUFFIXES and p.name[0] != "." for p in _entries(path)
        )
    return path.suffix.lower() in VIDEOS


def _entries(folder: Path) -> Iterator[Path]:
    try:
        inside = sorted(folder.iterdir(), key=lambda path: natural(path.name))
    except OSError as error:
        raise UserError(f"{folder} is not a readable folder: {error.strerror}") from None
    return (path for path in inside if not path.name.startswith("."))
