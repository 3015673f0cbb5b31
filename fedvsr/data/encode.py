"""Write a clip frame by frame, as a video with its source's tracks and colours, or as pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av

from fedvsr.data import pictures
from fedvsr.data.colour import Samples, pixel_format
from fedvsr.data.containers import opened, picture_stream, url
from fedvsr.data.frames import Folder, Source, Video
from fedvsr.data.tracks import Tracks, copy_tags, kept_tags
from fedvsr.errors import UserError
from fedvsr.files import replacing, replacing_folder

# Containers, by suffix, that can hold H.264 and times in fractions of a second.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
PICTURE_NAMES = "%08d.png"
VIDEO_BITS = (8, 10, 12)
# Narrower frames make x265 write past the end of its memory.
_X265_WIDTH = 64


@dataclass(frozen=True)
class VideoCodec:
    """Encoder of a video and its quality."""

    name: str = "libx264"
    crf: int = 14
    """Constant rate factor: 0 is the best quality; higher values make smaller files."""

    def depths(self, width: int, height: int) -> list[int]:
        """The bits per sample that it can write frames of a size with, the fewest first.

        Raises:
            UserError: the encoder does not exist, or cannot write frames of this size.
        """
        try:
            codec = av.Codec(self.name, "w")
        except ValueError:
            raise UserError(
                f"--codec {self.name} is no encoder of this PyAV; try libx264"
            ) from None
        if codec.type != "video":
            raise UserError(f"--codec {self.name} is not a video encoder; try libx264")
        if self.name == "libx265" and width < _X265_WIDTH:
            raise UserError(
                f"--codec libx265 cannot write frames of {width} pixels, which is fewer than "
                f"{_X265_WIDTH}; try libx264"
            )
        formats = {known.name for known in codec.video_formats or ()}
        return [bits for bits in VIDEO_BITS if pixel_format(width, height, bits) in formats] or [8]


class Writer(Protocol):
    """Writes frames in order."""

    def write(self, rgb: Samples, time: int) -> None:
        """Add a frame, RGB (H, W, 3), that is shown at `time`, in the source's unit."""


@contextmanager
def write_video(
    path: Path, like: Source, codec: VideoCodec, *, bits: int = 8, sound: bool = False
) -> Iterator[Writer]:
    """Write a video with the times, colours, pixel shape, tags and subtitles of a source.

    It is written under a temporary name and renamed at the end.

    Args:
        path: the video; its suffix is one of `CONTAINERS`.
        like: the source.
        codec: the encoder.
        bits: bits per sample, of `codec.depths`.
        sound: whether to copy the source's sound, unchanged.

    Raises:
        UserError: the encoder does not exist, or the container cannot hold the video or the sound.
    """
    codec.depths(like.width, like.height)
    container = CONTAINERS[path.suffix.lower()]
    try:
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(path))
            out = stack.enter_context(
                av.open(url(temporary), "w", container, metadata_errors="surrogateescape")
            )
            writer = _VideoWriter(out, like, codec, bits)
            if isinstance(like, Video):
                source = stack.enter_context(opened(like.path))
                copy_tags(picture_stream(source, like.path), writer.stream)
                out.metadata.update(kept_tags(source.metadata))
                writer.copy(Tracks(source, out, path, sound=sound))
                _copy_chapters(source, out, writer.origin_s)
            yield writer
            writer.finish()
    except av.FFmpegError as error:
        raise UserError(f"cannot write {path} with {codec.name}: {error.strerror}") from None


def _copy_chapters(
    source: av.container.InputContainer, out: av.container.OutputContainer, origin_s: Fraction
) -> None:
    # PyAV has chapters from version 16.
    if not hasattr(out, "set_chapters"):
        return
    chapters = source.chapters()
    for chapter in chapters:
        shift = round(origin_s / (chapter["time_base"] or 1))
        chapter["start"], chapter["end"] = chapter["start"] - shift, chapter["end"] - shift
    if chapters:
        out.set_chapters(chapters)


class _VideoWriter:
    def __init__(
        self, out: av.container.OutputContainer, like: Source, codec: VideoCodec, bits: int
    ) -> None:
        self.out, self.like, self.bits = out, like, bits
        self.tracks: Tracks | None = None
        # The output begins at zero, whatever the source's clock said at its beginning.
        self.first = like.start if isinstance(like, Video) else 0
        try:
            stream = out.add_stream(codec.name, rate=like.rate, options=_options(like, codec))
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"--codec {codec.name} cannot be written here: {error}") from None
        assert isinstance(stream, av.VideoStream)
        self.stream = stream
        self.started = False
        self.begin = self.last = 0
        self.first_dts: int | None = None

    @property
    def origin_s(self) -> Fraction:
        """The time of the source that is the output's zero."""
        return self.first * self.like.time_base

    def copy(self, tracks: Tracks) -> None:
        """Copy tracks beside the pictures; the output begins with the first of them."""
        self.tracks = tracks
        if tracks.start_s is not None:
            sound = round(tracks.start_s / self.like.time_base)
            self.first = min(self.first, sound)
        tracks.begin(self.origin_s)

    def write(self, rgb: Samples, time: int) -> None:
        frame = self.like.colour.from_rgb(rgb, self.bits)
        if not self.started:
            self._start(frame)
            self.begin = time
        frame.pts, frame.time_base = time - self.first, self.like.time_base
        self.last = time
        self.out.mux(self._encoded(frame))
        if self.tracks:
            self.tracks.copy_until(time * self.like.time_base)

    def finish(self) -> None:
        if self.started:
            packets = self._encoded(None)
            if packets:
                self._lengthen(packets[-1])
            self.out.mux(packets)
        if self.tracks:
            self.tracks.copy_until(None)

    def _encoded(self, frame: av.VideoFrame | None) -> list[av.Packet[av.VideoStream]]:
        packets = self.stream.encode(frame)
        if packets and self.first_dts is None:
            self.first_dts = packets[0].dts
        return packets

    def _lengthen(self, packet: av.Packet[av.VideoStream]) -> None:
        """Let the last packet end when the last frame does.

        Packets are in the order of decoding, in which the frame that is shown last is not the last.
        If frame times vary, the file would seem to end too early.
        """
        if packet.dts is None or self.first_dts is None:
            return
        step_s = 1 / self.like.rate
        shown_s = (self.last - self.begin) * self.like.time_base + step_s
        length = packet.duration or round(step_s / packet.time_base)
        missing = round(shown_s / packet.time_base) - (packet.dts - self.first_dts + length)
        packet.duration = length + max(0, missing)

    def _start(self, frame: av.VideoFrame) -> None:
        context = self.stream.codec_context
        context.width, context.height = frame.width, frame.height
        context.pix_fmt = frame.format.name
        context.time_base = self.like.time_base
        if self.like.aspect:
            context.sample_aspect_ratio = self.like.aspect
        context.thread_type = "AUTO"
        self.like.colour.tag(self.stream)
        self.started = True


def _options(like: Source, codec: VideoCodec) -> dict[str, str]:
    """The encoder's options: its quality, and metadata of HDR10."""
    options = {"crf": str(codec.crf)}
    hdr = like.hdr.options(codec.name) if isinstance(like, Video) and like.hdr else None
    # x265 would print a page about itself.
    private = [*(["log-level=error"] if codec.name == "libx265" else []), *(hdr or [])]
    if private:
        options[f"{codec.name.removeprefix('lib')}-params"] = ":".join(private)
    return options


@contextmanager
def write_pictures(
    folder: Path, names: Iterator[str], like: Source | None = None
) -> Iterator[Writer]:
    """Write PNG files with these names into a new folder, which replaces `folder` at the end.

    If `like` is a folder of pictures, they get its transparency and colour profiles.
    """
    with replacing_folder(folder) as temporary:
        yield _PictureWriter(temporary, names, like)


class _PictureWriter:
    def __init__(self, folder: Path, names: Iterator[str], like: Source | None) -> None:
        self.folder, self.names = folder, names
        self.like = like.files if isinstance(like, Folder) else None

    def write(self, rgb: Samples, time: int) -> None:
        alpha = icc = None
        if self.like is not None:
            alpha, icc = pictures.alpha(self.like[time]), pictures.profile(self.like[time])
        pictures.write(self.folder / next(self.names), rgb, alpha, icc)
