"""Check and read the recordings that clips are made of: videos and folders of pictures."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import islice, pairwise, repeat
from pathlib import Path

import av
import numpy as np

from fedvsr.data import pictures
from fedvsr.data.clips import Frames
from fedvsr.data.containers import opened
from fedvsr.data.frames import Folder, Source, Video, natural
from fedvsr.errors import FileError, UserError

_NUMBERED = re.compile(r"(.*?)(\d+)(\D*)")


@dataclass(frozen=True)
class Task:
    """A recording, and how clips are made of it."""

    clip_id: str
    label: str
    gt: Source
    lq: Folder | None
    """Low-resolution frames that the data set has, one per frame of `gt`; None to make them."""
    num_frames: int
    """The number of frames to use if `limit` is set, else an estimate of the recording's length."""
    limit: bool = False
    """Use only the first `num_frames`, and raise if the recording has fewer."""
    min_frames: int = 1
    """Raise if the recording has fewer frames."""
    cut: int | None = None
    """Frames per clip if the recording is cut into clips, named `<clip_id>-000` and so on; frames
    at the end that do not fill a clip are dropped."""
    max_clips: int | None = None
    """At most as many clips are cut, from the start of the recording; None: all."""

    def num_bytes(self, scale: int) -> int:
        """Bytes of disk space that its clips take."""
        height, width = (n // scale for n in (self.gt.height, self.gt.width))
        return self.num_frames * height * width * 3 * (scale * scale + 1)


def recording(
    path: Path,
    clip_id: str,
    label: str,
    *,
    clip_frames: int | None = None,
    min_frames: int = 1,
    max_clips: int | None = None,
) -> Task:
    """The task for a video or a folder of pictures, whole or cut into clips.

    Args:
        path: the video, or the folder.
        clip_id: the clip's name, or the start of its clips' names.
        label: its label.
        clip_frames: frames per clip if it is cut; None: it is one clip.
        min_frames: frames that it must have at least; with `clip_frames`, one clip's.
        max_clips: see `Task.max_clips`.

    Raises:
        UserError: it cannot be read, or its header gives too few frames.
    """
    gt: Source = Video.open(path) if path.is_file() else picture_folder(path)
    num_frames = gt.num_frames or _estimate(path, gt)
    min_frames = clip_frames or min_frames
    task = Task(clip_id, label, gt, None, num_frames, False, min_frames, clip_frames, max_clips)
    if 0 < gt.num_frames < min_frames:
        raise too_short(task, gt.num_frames)
    if clip_frames and max_clips:
        task = replace(task, num_frames=min(num_frames, clip_frames * max_clips))
    return task


def too_short(task: Task, num_frames: int) -> UserError:
    """The error for a recording that has only `num_frames` frames."""
    if task.cut:
        needed, setting = task.cut, "--clip-frames or data.clip_frames"
    elif task.limit:
        needed, setting = task.num_frames, "--frames"
    else:
        needed, setting = task.min_frames, "--min-frames"
    frames = "1 frame" if num_frames == 1 else f"{num_frames} frames"
    return FileError(
        task.gt.path, f"has {frames} and needs at least {needed}; remove it, or lower {setting}"
    )


def _estimate(path: Path, video: Source) -> int:
    """Frames of a video by its duration, if its header gives no count; 1 if that is unknown too."""
    assert isinstance(video, Video)
    with opened(path) as container:
        seconds = (container.duration or 0) / av.time_base
    return max(1, round(seconds * video.rate))


def picture_folder(path: Path) -> Folder:
    """Open a folder of pictures; only the header of the first picture is read.

    Raises:
        UserError: the folder has no pictures, the first is unreadable, or the pictures' numbers
            have a gap.
    """
    try:
        inside = [file for file in path.iterdir() if file.suffix.lower() in pictures.SUFFIXES]
    except OSError as error:
        raise UserError(f"{path} is not a readable folder: {error.strerror}") from None
    names = [file for file in inside if file.name[0] != "."]
    files = tuple(sorted(names, key=lambda file: natural(file.name)))
    if not files:
        raise UserError(f"{path} has no pictures ({', '.join(sorted(pictures.SUFFIXES))})")
    _require_all_numbers(path, files)
    height, width = pictures.size(files[0])
    return Folder(path, files, height, width, Fraction(25))


def _require_all_numbers(path: Path, files: tuple[Path, ...]) -> None:
    parts = [_NUMBERED.fullmatch(file.stem) for file in files]
    numbers = [int(part[2]) for part in parts if part]
    around = {(part[1], part[3]) for part in parts if part}
    if len(numbers) < len(files) or len(around) > 1:
        return  # the names are not numbered
    steps = [after - before for before, after in pairwise(numbers)]
    # A folder may also hold every second frame, say.
    usual = min(filter(None, steps), default=1)
    for step, number, file in zip(steps, numbers, files, strict=False):
        if step == 0:
            raise UserError(f"{path} has two pictures with the number {number}; keep one of them")
        if step != usual:
            raise UserError(
                f"{path}: frame {number + usual} is missing after {file.name} (the next is "
                f"{number + step}); restore it"
            )


def require_match(gt: Folder, lq: Folder, scale: int) -> None:
    """Raise UserError unless `lq` has as many pictures as `gt`, of its size over the scale.

    `gt` counts as cropped to multiples of the scale.
    """
    if gt.num_frames != lq.num_frames:
        difference = Counter(f.stem for f in gt.files) - Counter(f.stem for f in lq.files)
        example = f" ({min(difference)} is only in the first)" if difference else ""
        raise UserError(
            f"{gt.path} has {gt.num_frames} frames and {lq.path} has {lq.num_frames}{example}; "
            "each frame needs a low-resolution one"
        )
    if (lq.height, lq.width) != (gt.height // scale, gt.width // scale):
        raise UserError(
            f"{lq.path} has {lq.width} x {lq.height} pixels; x{scale} of {gt.path} needs "
            f"{gt.width // scale} x {gt.height // scale}"
        )


def pairs_of(task: Task, scale: int, notes: list[str]) -> Iterator[tuple[Frames, Frames | None]]:
    """Read a task's frames, cropped to multiples of the scale, and its low-resolution frames.

    Args:
        task: the recording.
        scale: the reduction.
        notes: what was changed, e.g. by cropping, is appended here.

    Yields:
        Ground truth, uint8 RGB (H, W, 3), and the low-resolution frame, or None if the data set
        has none.

    Raises:
        UserError: a frame cannot be read, or differs in size from the first.
    """
    gt = task.gt
    height, width = (n - n % scale for n in (gt.height, gt.width))
    if not height or not width:
        raise UserError(
            f"{gt.path} is {gt.width} x {gt.height} pixels, too small for x{scale}; remove it"
        )
    if (height, width) != (gt.height, gt.width):
        notes.append(f"{gt.path}: {gt.width} x {gt.height} is cropped to {width} x {height}")
    notes += _changes(gt)
    times = list[int]()
    limit = task.num_frames if task.limit else None
    with ExitStack() as stack:
        low = (
            repeat(None)
            if task.lq is None
            else (np.asarray(rgb, np.uint8) for rgb, _ in task.lq.frames())
        )
        # A frame that the decoder made up in part must not be trained on.
        frames = gt.frames(intact=True) if isinstance(gt, Video) else gt.frames()
        stack.enter_context(closing(frames))
        for (rgb, time), lq in zip(islice(frames, limit), low, strict=False):
            times.append(time)
            yield np.asarray(rgb, np.uint8)[:height, :width], lq
    # If the header does not count frames, only the duration shows that a file was cut off.
    if isinstance(gt, Video) and not gt.num_frames and len(times) < 0.9 * task.num_frames:
        notes.append(f"{gt.path} has {len(times)} frames; its duration promises {task.num_frames}")
    steps = [after - before for before, after in pairwise(times)]
    # Steps differ by one if the unit of time does not divide the time of a frame.
    if isinstance(gt, Video) and steps and max(steps) - min(steps) > 1 + min(steps) // 10:
        notes.append(f"{gt.path}: its frame rate varies; every frame is used once")


def _changes(gt: Source) -> Iterator[str]:
    """Notes on what 8-bit RGB clips do not keep of a recording."""
    if isinstance(gt, Folder):
        grey, transparent = pictures.modes(gt.files)
        if grey:
            yield f"{gt.path}: grey pictures are converted to RGB"
        if transparent:
            yield f"{gt.path}: transparency is dropped"
    elif "transparency" in gt.lost:
        yield f"{gt.path}: transparency is dropped"
    if gt.depth > 8:
        yield f"{gt.path}: {gt.depth} bits per sample are reduced to 8"
    if isinstance(gt, Video) and gt.interlaced:
        yield f"{gt.path} is interlaced; its frames are used as they are"


def fingerprint(task: Task) -> str:
    """A hash of how the recording is cut and of its files' names, sizes and times."""
    files = [*_files(task.gt), *(_files(task.lq) if task.lq else ())]
    stats = [(str(file), *_stat(file)) for file in files]
    how = (task.label, task.limit and task.num_frames, task.min_frames, task.cut)
    return hashlib.sha256(json.dumps([how, stats]).encode()).hexdigest()


def _stat(file: Path) -> tuple[int, int]:
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns


def _files(source: Source) -> tuple[Path, ...]:
    return source.files if isinstance(source, Folder) else (source.path,)
