"""Super-resolves a video or a folder of pictures: reads, enlarges and writes frame by frame."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path

from fedvsr.data import pictures, tracks
from fedvsr.data.colour import Samples
from fedvsr.data.containers import count_frames
from fedvsr.data.encode import (
    CONTAINERS,
    PICTURE_NAMES,
    VideoCodec,
    Writer,
    write_pictures,
    write_video,
)
from fedvsr.data.frames import Folder, Source, Video, open_clip
from fedvsr.errors import UserError
from fedvsr.inference.side_thread import ReadAhead, SideThread, WriteBehind
from fedvsr.inference.streaming import (
    Compute,
    Progress,
    Say,
    queue_length,
    super_resolve_stream,
)
from fedvsr.inference.trained import Trained, find_trained


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
    bits: int = 8
    """Bits per sample: 8, 10 or 12 in a video, 8 or 16 in pictures."""
    deinterlace: bool = False
    """Make progressive frames of interlaced ones first."""


def choose_output(
    source: Source,
    scale: int,
    out: str | None,
    sound: bool,
    codec: VideoCodec,
    overwrite: bool,
    bits: int | None = None,
    deinterlace: bool = False,
) -> Output:
    """Choose where an enlarged clip is written: to `out`, or beside the source.

    Args:
        source: the clip.
        scale: the enlargement.
        out: the path that the user names, if any.
        sound: whether to copy the source's sound, if it has any.
        codec: the encoder of a video.
        overwrite: whether an existing output may be replaced.
        bits: bits per sample; None: the source's, or the most that can be written.
        deinterlace: whether to make progressive frames of interlaced ones first.

    Raises:
        UserError: the path exists, is the source itself, or has a format or a depth that is not
            written.
    """
    video = isinstance(source, Video)
    if out is None:
        name = f"{source.path.stem if video else source.path.resolve().name}_x{scale}"
        path = source.path.resolve().parent / name
        if video:
            fits = tracks.fits(source.path, "mp4", sound=sound)
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
    if deinterlace and not video:
        raise UserError("--deinterlace is for videos; pictures have no fields, so leave it out")
    depth = _bits(source, output, scale, bits)
    return replace(output, bits=depth, deinterlace=deinterlace)


def _bits(source: Source, output: Output, scale: int, bits: int | None) -> int:
    known: list[int] | tuple[int, ...] = (8, 16)
    if output.is_video:
        known = output.codec.depths(source.width * scale, source.height * scale)
    if bits is None:
        return next((b for b in known if b >= source.depth), known[-1])
    if bits not in known:
        kind = f"a video by {output.codec.name}" if output.is_video else "a picture"
        raise UserError(f"--bits {bits}: {kind} has {' or '.join(map(str, known))} bits per sample")
    return bits


def warnings(source: Source, output: Output) -> Iterator[str]:
    """What of a clip its enlarged version will not keep, and what the user may want to change."""
    if source.depth > output.bits:
        yield f"{source.depth} bits per sample are reduced to {output.bits}"
    if isinstance(source, Folder):
        yield from pictures.losses(source.files, to_pictures=not output.is_video)
        return
    container = CONTAINERS[output.path.suffix.lower()] if output.is_video else None
    yield from tracks.losses(source.path, container, sound=output.sound)
    yield from (f"{what}: not copied" for what in source.lost)
    if source.interlaced and not output.deinterlace:
        yield (
            "the video is interlaced: each frame holds two moments, which are enlarged as if they "
            "were one; --deinterlace separates them first"
        )
    if container is None:
        if source.hdr or source.colour.is_hdr:
            yield "the pictures have the video's HDR colours, but no tag for them"
    elif source.hdr and source.hdr.options(output.codec.name) is None:
        yield f"HDR10 metadata: not copied, as {output.codec.name} cannot write it; try libx265"


def upscale(
    trained: Trained,
    source: Source,
    output: Output,
    compute: Compute,
    progress: Progress,
    say: Say,
) -> int:
    """Enlarge a clip into `output`, which is written only if every frame is.

    A thread reads frames in advance and another writes them, while the network computes.

    Returns:
        The number of frames.

    Raises:
        UserError: a frame cannot be read, the output cannot be written, or memory does not suffice.
    """
    times = deque[int]()
    deep = source.depth > 8
    if isinstance(source, Video):
        # Found now, a file that was cut short costs no hours of computing.
        num_frames = count_frames(source.path)
        frames = source.frames(deep=deep, deinterlace=output.deinterlace, say=say)
    else:
        num_frames, frames = source.num_frames, source.frames(deep=deep)

    def timed(ahead: Iterable[tuple[Samples, int]]) -> Iterator[Samples]:
        for rgb, time in ahead:
            times.append(time)
            yield rgb

    for line in warnings(source, output):
        say(line)
    shape = num_frames, source.height, source.width
    lq_bytes = source.height * source.width * 3 * (2 if deep else 1)
    sr_bytes = source.height * source.width * trained.spec.scale**2 * 3 * (2 if deep else 1)
    done = 0
    with (
        closing(frames),
        _open(output, source) as writer,
        SideThread(f"reading {source.path}") as reader,
        SideThread(f"writing {output.path}") as encoder,
    ):
        behind = WriteBehind(writer.write, encoder, queue_length(sr_bytes))
        for sr in super_resolve_stream(
            trained.network,
            trained.spec,
            timed(ReadAhead(frames, reader, queue_length(lq_bytes))),
            shape,
            compute,
            progress,
            say,
            deep=output.bits > 8,
        ):
            behind.add(sr, times.popleft())
            done += 1
        behind.finish()
    return done


def upscale_file(
    checkpoint: str,
    source: Path,
    out: str | Path | None,
    compute: Compute,
    overwrite: bool,
    say: Say,
) -> Path:
    """Enlarge a video, or a folder of pictures, with the settings that a file's kind suggests.

    Args:
        checkpoint: a run's folder, or a file of weights.
        source: the video or the folder.
        out: see `choose_output`.
        compute: the device and precision.
        overwrite: whether an existing output may be replaced.
        say: called with each line for the user.

    Returns:
        The path that was written.

    Raises:
        UserError: see `find_trained`, `choose_output` and `upscale`.
    """
    clip = open_clip(source)
    trained = find_trained(checkpoint, Path())
    output = choose_output(
        clip, trained.spec.scale, str(out) if out else None, True, VideoCodec(), overwrite
    )
    upscale(trained, clip, output, compute, lambda _done, _total: None, say)
    return output.path


def require_name(path: Path) -> None:
    """Raise UserError if the name of an output, or its temporary name, is too long for a file."""
    longest = 255 - len(f"..{os.getpid()}.tmp")
    name = max(path.parts, key=lambda part: len(os.fsencode(part)), default="")
    if len(os.fsencode(name)) > longest or len(os.fsencode(path)) > 4000:
        raise UserError(
            f"--out {name[:40]}...: the name is too long; a file's name has at most {longest} bytes"
        )


def _require_free(source: Source, output: Output, overwrite: bool) -> None:
    path = output.path
    require_name(path)
    if path.resolve() == source.path.resolve():
        raise UserError(f"{path} is the input; write to another place with --out")
    if not path.parent.is_dir():
        if path.parent.exists():
            raise UserError(f"cannot write {path.name}: {path.parent} is a file, not a folder")
        raise UserError(f"cannot write {path.name}: there is no folder {path.parent}; create it")
    if not os.access(path.parent, os.W_OK):
        raise UserError(f"cannot write {path.name}: the folder {path.parent} is read-only")
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
        with write_video(
            output.path, source, output.codec, bits=output.bits, sound=output.sound
        ) as writer:
            yield writer
        return
    names: Iterator[str] = (output.names % index for index in count())
    if output.keep_names and isinstance(source, Folder):
        stems = [file.stem for file in source.files]
        if len({*stems}) == len(stems):
            names = (f"{stem}.png" for stem in stems)
    with write_pictures(output.path, names, source) as writer:
        yield writer
