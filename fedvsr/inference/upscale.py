"""Super-resolves a video or a folder of pictures: reads, enlarges and writes frame by frame."""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

from fedvsr.data.clips import Frames
from fedvsr.data.encode import (
    CONTAINERS,
    PICTURE_NAMES,
    VideoCodec,
    Writer,
    takes_sound,
    write_pictures,
    write_video,
)
from fedvsr.data.frames import Folder, Source, Video
from fedvsr.errors import UserError
from fedvsr.inference.streaming import Compute, Progress, Say, super_resolve_stream
from fedvsr.inference.trained import Trained


@dataclass(frozen=True)
class Output:
    """Where and how an enlarged clip is written."""

    path: Path
    is_video: bool
    """Whether `path` is a video, with a suffix of `CONTAINERS`, or a folder of pictures."""
    names: str = PICTURE_NAMES
    """Pattern of the pictures' names, by frame index from 0."""
    keep_names: bool = False
    """Give pictures the names of the source's pictures."""
    sound: bool = False
    """Copy the source's sound, if it is a video with sound."""
    codec: VideoCodec = field(default_factory=VideoCodec)


def choose_output(
    source: Source, scale: int, out: str | None, sound: bool, codec: VideoCodec, overwrite: bool
) -> Output:
    """Choose where an enlarged clip is written: to `out`, or beside the source.

    Raises:
        UserError: the path exists, is the source itself, or has a format that is not written.
    """
    video = isinstance(source, Video)
    sound = sound and isinstance(source, Video) and source.has_sound
    if out is None:
        name = f"{source.path.stem if video else source.path.resolve().name}_x{scale}"
        path = source.path.resolve().parent / name
        if video:
            fits = not sound or takes_sound(".mp4", source.path)
            path = path.with_name(name + (".mp4" if fits else ".mkv"))
        output = Output(path, video, keep_names=not video, sound=sound, codec=codec)
    elif (path := Path(out).expanduser()).suffix.lower() == ".png":
        if len(re.findall(r"%0?\d*d", path.name)) != 1 or path.name.count("%") != 1:
            raise UserError(f"--out {out}: a clip is many pictures; write e.g. NAME%05d.png")
        output = Output(path.parent, False, names=path.name)
    elif path.suffix.lower() in CONTAINERS and not out.endswith("/"):
        output = Output(path, True, sound=sound, codec=codec)
    elif path.suffix.lower() in {".avi", ".webm", ".gif", ".ts", ".mpg", ".wmv", ".flv"}:
        raise UserError(f"--out {out}: videos are written as {', '.join(CONTAINERS)}")
    else:
        output = Output(path, False, keep_names=not video)
    _require_free(source, output, overwrite)
    return output


def upscale(
    trained: Trained,
    source: Source,
    output: Output,
    compute: Compute,
    progress: Progress,
    say: Say,
) -> int:
    """Enlarge a clip into `output`, which is written only if every frame is.

    Returns:
        The number of frames.

    Raises:
        UserError: a frame cannot be read, the output cannot be written, or memory does not suffice.
    """
    times, done = deque[int](), 0

    def timed() -> Iterator[Frames]:
        for rgb, time in source.frames():
            times.append(time)
            yield rgb

    with _open(output, source) as writer:
        shape = source.num_frames, source.height, source.width
        for sr in super_resolve_stream(
            trained.network, trained.spec, timed(), shape, compute, progress, say
        ):
            writer.write(sr, times.popleft())
            done += 1
    return done


def _require_free(source: Source, output: Output, overwrite: bool) -> None:
    path = output.path
    inside = path.resolve()
    if inside == source.path.resolve():
        raise UserError(f"{path} is the input; write to another place with --out")
    if not path.parent.is_dir():
        raise UserError(f"cannot write {path.name}: there is no folder {path.parent}; create it")
    if not path.exists():
        return
    if not overwrite:
        raise UserError(f"{path} exists; replace it with --overwrite, or name another with --out")
    if path.is_dir() == output.is_video:
        kinds = ("a folder", "a file") if path.is_dir() else ("a file", "a folder")
        raise UserError(f"{path} is {kinds[0]}, not {kinds[1]}; name another path with --out")
    if path.is_dir() and any(file.suffix.lower() != ".png" for file in path.iterdir()):
        raise UserError(
            f"{path} holds other files than PNG pictures, so it is not replaced; name another with "
            "--out"
        )


@contextmanager
def _open(output: Output, source: Source) -> Iterator[Writer]:
    if output.is_video:
        sound = source.path if output.sound else None
        with write_video(output.path, source, output.codec, sound) as writer:
            yield writer
        return
    names: Iterator[str] = (output.names % index for index in count())
    if output.keep_names and isinstance(source, Folder):
        stems = [file.stem for file in source.files]
        if len({*stems}) == len(stems):
            names = (f"{stem}.png" for stem in stems)
    with write_pictures(output.path, names) as writer:
        yield writer
