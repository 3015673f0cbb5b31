"""Prepare a few clips of some classes of Kinetics-400 (Kay et al. 2017).

They are chosen at random by seed, or in the order of the annotations.

The official annotations have the columns label, youtube_id, time_start, time_end and split. Videos
are named `<youtube_id>_<start>_<end>.mp4` (with six digits each) or `<youtube_id>.mp4` and may lie
in any folder.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedvsr.data.frames import Video
from fedvsr.data.prepare import Progress, TaskClips, Workshop, workshop
from fedvsr.data.recordings import Task
from fedvsr.data.request import Request, existing
from fedvsr.data.sources.folder import VIDEOS
from fedvsr.data.store import Store
from fedvsr.errors import FileError, UserError
from fedvsr.lookup import did_you_mean
from fedvsr.seeding import generator

# The 40 classes of the FedVSR paper's "more heterogeneous" setting, in its order.
CLASSES = (
    "feeding birds",
    "planting trees",
    "rock climbing",
    "sailing",
    "bee keeping",
    "archery",
    "bungee jumping",
    "surfing water",
    "skiing crosscountry",
    "playing paintball",
    "snowboarding",
    "playing piano",
    "playing bagpipes",
    "playing didgeridoo",
    "playing violin",
    "playing accordion",
    "dancing gangnam style",
    "marching",
    "tap dancing",
    "robot dancing",
    "yoga",
    "baking cookies",
    "peeling potatoes",
    "breading or breadcrumbing",
    "making pizza",
    "making tea",
    "feeding fish",
    "riding elephant",
    "milking cow",
    "petting cat",
    "feeding goats",
    "blowing glass",
    "carving pumpkin",
    "braiding hair",
    "building cabinet",
    "folding paper",
    "snowmobiling",
    "spray painting",
    "swinging on something",
    "decorating the christmas tree",
)
# Settings that choose clips but do not change them.
PICKS = (
    "annotations",
    "classes",
    "clips_per_class",
    "fps",
    "height",
    "min_seconds",
    "order",
    "seed",
    "split",
    "width",
)
Order = Literal["random", "table"]
_YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]+")


@dataclass(frozen=True)
class Choice:
    """The clips to choose."""

    classes: Sequence[str] = CLASSES
    clips_per_class: int = 6
    num_frames: int = 100
    """Frames kept from the start of each video."""
    height: int = 720
    width: int = 1280
    fps: float | None = None
    """Use only videos of this frame rate; None: any."""
    split: str | None = None
    """Use only rows of this split of the annotations; None: all."""
    seed: int = 0
    """Seed of the random choice."""
    min_seconds: float = 0
    """Use only videos that are at least this long."""
    order: Order = "random"
    """Whether a class's rows are tried at random or as they stand in the annotations."""

    def settings(self) -> dict[str, object]:
        """All settings of the choice, for the request."""
        settings = {**vars(self), "classes": list(self.classes)}
        # Stores from before these settings lack them.
        absent = {"min_seconds": 0, "order": "random"}
        return {k: v for k, v in settings.items() if k not in absent or v != absent[k]}


@dataclass(frozen=True)
class Candidate:
    """A row of the annotations, and its video if the source has it."""

    clip_id: str
    label: str
    path: Path | None


class TooFewError(UserError):
    """Some classes have too few clips; `rejected` gives the reasons, as in a store."""

    def __init__(self, rejected: Sequence[dict[str, str]], message: str) -> None:
        super().__init__(message)
        self.rejected = rejected


def candidates(source: Path, annotations: Path, choice: Choice) -> dict[str, list[Candidate]]:
    """The rows of each chosen class, in the order in which they are tried.

    A class's random order depends on the seed and on its rows, but not on their order in the file
    or on which videos exist.

    Raises:
        UserError: the annotations cannot be read, or lack a class.
    """
    rows = _rows(annotations, choice)
    if unknown := [label for label in choice.classes if label not in rows]:
        hint = did_you_mean(unknown[0], rows)
        raise UserError(f"{annotations} has no class {', '.join(unknown)}{hint}")
    videos = _videos(source)
    tried, seen = {}, set[str]()
    for label in choice.classes:
        # A video of two classes belongs to the first one.
        names = [name for name in rows[label] if name not in seen]
        seen.update(names)
        if choice.order == "random":
            names.sort()
            order = generator(choice.seed, "kinetics", label).permutation(len(names))
            names = [names[i] for i in order]
        tried[label] = [
            Candidate(name, label, videos.get(name) or videos.get(rows[label][name]))
            for name in names
        ]
    return tried


def prepare(
    request: Request,
    source: Path,
    annotations: Path,
    choice: Choice,
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make a store of the chosen clips, sorted by class and then in the order they were tried.

    A video that is missing, unreadable, too short or of another size is replaced by the next
    candidate.

    Raises:
        TooFewError: some classes have too few usable videos.
        UserError: see `fedvsr.data.prepare.prepare`.
    """
    store = existing(request)
    if store is not None:
        return store
    tried = candidates(source, annotations, choice)
    existing_videos = {label: sum(c.path is not None for c in row) for label, row in tried.items()}
    _require_enough(existing_videos, choice, f"videos in {source}")
    with workshop(request, workers, progress) as work:
        if work.finished is not None:
            return work.finished
        total = len(tried) * choice.clips_per_class
        made_before = sum(1 for row in tried.values() for c in row if work.has(c.clip_id))
        num_frames = max(0, total - made_before) * choice.num_frames
        one_frame = choice.height * choice.width * 3
        work.expect(num_frames, num_frames * (one_frame + one_frame // request.scale**2))
        results = work.each(lambda label: _make_class(work, tried[label], choice), tried)
        counts = {label: len(finished) for label, (finished, _) in zip(tried, results, strict=True)}
        finished = [each for class_made, _ in results for each in class_made]
        rejected = [each for _, class_rejected in results for each in class_rejected]
        size = f"{choice.width} x {choice.height}"
        _require_enough(counts, choice, f"usable videos of {size}", rejected)
        return work.finish(finished, rejected=rejected)


def _make_class(
    work: Workshop, row: Sequence[Candidate], choice: Choice
) -> tuple[list[TaskClips], list[dict[str, str]]]:
    finished, rejected = list[TaskClips](), list[dict[str, str]]()
    for candidate in row:
        if len(finished) == choice.clips_per_class:
            break
        try:
            finished.append(work.make(_task(candidate, choice)))
        except UserError as error:
            reason = error.reason if isinstance(error, FileError) else str(error)
            rejected.append(
                {"label": candidate.label, "video": candidate.clip_id, "reason": reason}
            )
    return finished, rejected


def _task(candidate: Candidate, choice: Choice) -> Task:
    if candidate.path is None:
        raise UserError("is missing")
    video = Video.open(candidate.path)
    if (video.width, video.height) != (choice.width, choice.height):
        raise UserError(f"is {video.width} x {video.height}")
    if choice.fps is not None and abs(float(video.rate) - choice.fps) > 1e-3:
        raise UserError(f"has {float(video.rate):.5g} frames per second")
    if choice.min_seconds and not video.num_frames:
        raise UserError("does not say how long it is")
    if (seconds := float(video.num_frames / video.rate)) < choice.min_seconds:
        raise UserError(f"is {seconds:.3g} s long")
    if 0 < video.num_frames < choice.num_frames:
        raise UserError(f"has {video.num_frames} frames")
    return Task(candidate.clip_id, candidate.label, video, None, choice.num_frames, limit=True)


def _rows(annotations: Path, choice: Choice) -> dict[str, dict[str, str]]:
    """The YouTube ids of the rows, by class and by `<youtube_id>_<start>_<end>`."""
    rows = defaultdict[str, dict[str, str]](dict)
    try:
        with annotations.open(newline="", encoding="utf-8-sig") as file:
            for number, row in enumerate(csv.DictReader(file), start=2):
                youtube_id, label = row["youtube_id"].strip(), row["label"].strip()
                if not _YOUTUBE_ID.fullmatch(youtube_id):
                    raise UserError(
                        f"{annotations}, line {number}: {youtube_id!r} is not a video id"
                    )
                if choice.split not in {None, row["split"].strip()}:
                    continue
                start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
                rows[label][f"{youtube_id}_{start:06d}_{end:06d}"] = youtube_id
    except OSError as error:
        raise UserError(f"cannot read {annotations}: {error.strerror}") from None
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, csv.Error):
        raise UserError(
            f"{annotations} is not Kinetics' table with the columns label, youtube_id, time_start, "
            "time_end and split"
        ) from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{annotations}, line {number}: {error}") from None
    return rows


def _videos(source: Path) -> dict[str, Path]:
    """All videos below a folder, by name without suffix; of equal names, the first by path."""
    if not source.is_dir():
        raise UserError(f"there is no folder {source}; name the folder of Kinetics' videos")
    videos = dict[str, Path]()
    # A class's folder is often a link.
    inside = (
        Path(at, name) for at, _, files in os.walk(source, followlinks=True) for name in files
    )
    for path in sorted(inside):
        if path.suffix.lower() in VIDEOS:
            videos.setdefault(path.stem, path)
    return videos


def _require_enough(
    counts: dict[str, int], choice: Choice, what: str, rejected: Sequence[dict[str, str]] = ()
) -> None:
    needed = choice.clips_per_class
    if few := [f"{label} ({n} of {needed})" for label, n in counts.items() if n < needed]:
        raise TooFewError(
            rejected,
            f"too few {what} in {len(few)} of {len(counts)} classes: {', '.join(few)}; add videos, "
            "lower --clips-per-class, or choose other classes with --class",
        )
