"""Write a clip frame by frame, as a video (with its source's sound, times, colours) or pictures."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Protocol

import av
from PIL import Image

from fedvsr.data.clips import Frames
from fedvsr.data.frames import Source
from fedvsr.errors import UserError
from fedvsr.files import replacing, replacing_folder

# Containers, by suffix, that can hold H.264 and times in fractions of a second.
CONTAINERS = {".mp4": "mp4", ".m4v": "mp4", ".mov": "mov", ".mkv": "matroska"}
PICTURE_NAMES = "%08d.png"


@dataclass(frozen=True)
class VideoCodec:
    """Encoder of a video and its quality."""

    name: str = "libx264"
    crf: int = 14
    """Constant rate factor: 0 is the best quality; higher values make smaller files."""


class Writer(Protocol):
    """Writes frames in order."""

    def write(self, rgb: Frames, time: int) -> None:
        """Add a frame, uint8 RGB (H, W, 3), that is shown at `time`, in the source's unit."""


@contextmanager
def write_video(
    path: Path, like: Source, codec: VideoCodec, sound: Path | None
) -> Iterator[Writer]:
    """Write a video with the times, colours and pixel shape of a source.

    It is written under a temporary name and renamed at the end.

    Args:
        path: the video; its suffix is one of `CONTAINERS`.
        like: the source.
        codec: the encoder.
        sound: the file whose sound is copied unchanged, or None.

    Raises:
        UserError: the encoder does not exist, or the container cannot hold the video or the sound.
    """
    try:
        kind = av.Codec(codec.name, "w").type
    except ValueError:
        raise UserError(f"--codec {codec.name} is no encoder of this PyAV; try libx264") from None
    if kind != "video":
        raise UserError(f"--codec {codec.name} is not a video encoder; try libx264")
    container = CONTAINERS[path.suffix.lower()]
    try:
        with ExitStack() as stack:
            temporary = stack.enter_context(replacing(path))
            out = stack.enter_context(av.open(str(temporary), "w", container))
            writer = _VideoWriter(out, like, codec)
            if sound is not None:
                source = stack.enter_context(av.open(str(sound)))
                writer.sound = _Sound(source, out, path)
            yield writer
            writer.finish()
    except av.FFmpegError as error:
        raise UserError(f"cannot write {path} with {codec.name}: {error.strerror}") from None


def takes_sound(suffix: str, source: Path) -> bool:
    """Whether the container with this suffix can hold a video's sound unchanged."""
    with (
        av.open(io.BytesIO(), "w", CONTAINERS[suffix]) as out,
        av.open(str(source)) as container,
    ):
        names = {stream.codec_context.name for stream in container.streams.audio}
        return names <= out.supported_codecs


class _VideoWriter:
    def __init__(self, out: av.container.OutputContainer, like: Source, codec: VideoCodec) -> None:
        self.out, self.like = out, like
        self.sound: _Sound | None = None
        try:
            stream = out.add_stream(codec.name, rate=like.rate, options={"crf": str(codec.crf)})
        except (av.FFmpegError, ValueError) as error:
            raise UserError(f"--codec {codec.name} cannot be written here: {error}") from None
        assert isinstance(stream, av.VideoStream)
        self.stream = stream
        self.started = False

    def write(self, rgb: Frames, time: int) -> None:
        frame = self.like.colour.from_rgb(rgb)
        if not self.started:
            self._start(frame)
        frame.pts, frame.time_base = time, self.like.time_base
        self.out.mux(self.stream.encode(frame))
        if self.sound:
            self.sound.copy_until(time * self.like.time_base)

    def finish(self) -> None:
        if self.started:
            self.out.mux(self.stream.encode())
        if self.sound:
            self.sound.copy_until(None)

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


class _Sound:
    """Copies audio packets, no further than the video has been written."""

    def __init__(
        self, source: av.container.InputContainer, out: av.container.OutputContainer, path: Path
    ) -> None:
        self.out = out
        self.streams = {}
        for stream in source.streams.audio:
            if stream.codec_context.name not in out.supported_codecs:
                raise UserError(
                    f"{path.suffix} cannot hold sound of the codec {stream.codec_context.name}; "
                    "write a .mkv, or leave the sound out with --no-sound"
                )
            self.streams[stream.index] = out.add_stream_from_template(stream)
        # demux() without a stream would return the packets of all streams.
        self.packets = source.demux(*source.streams.audio) if self.streams else iter(())
        self.waiting: av.Packet[Any] | None = None

    def copy_until(self, time_s: Fraction | None) -> None:
        """Copy the packets up to a time; None: all that remain."""
        while (packet := self.waiting or next(self.packets, None)) is not None:
            self.waiting = None
            if packet.dts is None:  # the end of a stream
                continue
            if time_s is not None and packet.dts * packet.time_base > time_s:
                self.waiting = packet
                return
            packet.stream = self.streams[packet.stream.index]
            self.out.mux(packet)


@contextmanager
def write_pictures(folder: Path, names: Iterator[str]) -> Iterator[Writer]:
    """Write PNG files with these names into a new folder, which replaces `folder` at the end."""
    with replacing_folder(folder) as temporary:
        yield _PictureWriter(temporary, names)


class _PictureWriter:
    def __init__(self, folder: Path, names: Iterator[str]) -> None:
        self.folder, self.names = folder, names

    def write(self, rgb: Frames, time: int) -> None:
        # Lightest compression: at the default, large pictures take longer to compress than to make.
        Image.fromarray(rgb).save(self.folder / next(self.names), compress_level=1)
