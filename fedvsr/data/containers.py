"""Open video files, and tell a file that was cut short from one that was edited.

Every place that decodes does so through this module, because two things must be right everywhere.
A name with a colon is a file, not a protocol. And no decoder uses threads that run on between two
calls: when such a decoder is freed, it waits for its threads while it holds Python's lock, and they
wait for that lock to write to PyAV's log (which some versions of torchvision turn on). That is a
deadlock that no time limit in Python can break.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import IO

import av
from av.container import InputContainer
from av.stream import Disposition

from fedvsr.errors import FileError, UserError

_SEGMENT = bytes.fromhex("18538067")


def url(path: Path) -> str:
    """The name by which FFmpeg opens a file: without the prefix, `12:30.mp4` is a protocol."""
    return f"file:{path}"


@contextmanager
def opened(path: Path) -> Iterator[InputContainer]:
    """Open a video file to read it.

    Raises:
        UserError: the file cannot be read, or is not a video.
    """
    try:
        # Metadata in an encoding other than UTF-8 is passed on as it is.
        container = av.open(url(path), metadata_errors="surrogateescape")
    except (av.FFmpegError, OSError) as error:
        raise FileError(path, f"is not a readable video: {error.strerror}") from None
    with container:
        yield container


def picture_stream(container: InputContainer, path: Path) -> av.VideoStream:
    """The first video stream that is not a cover picture.

    Raises:
        UserError: the file has none, or it cannot be decoded.
    """
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise FileError(path, "has a video stream of a codec that PyAV does not have")
            return stream
    raise FileError(path, "has no video stream")


def decoded(
    container: InputContainer, stream: av.VideoStream
) -> Generator[av.VideoFrame, None, None]:
    """Decode a stream's frames in order. Close the generator before the container."""
    # Threads within a frame work only during a call, which lets go of Python's lock.
    stream.thread_type = "SLICE"
    for packet in container.demux(stream):
        # AVI marks a repeated frame by an empty packet, which would end the decoding.
        if packet.size or packet.dts is None:
            yield from packet.decode()


def count_frames(path: Path) -> int:
    """Count the frames that a video shows, without decoding them.

    Raises:
        UserError: the file ends before its contents do.
    """
    with opened(path) as container:
        stream = picture_stream(container, path)
        shown, end_s = _packets(container, path)
        promised = stream.frames
        seconds = (stream.duration or 0) * (stream.time_base or Fraction(0))
        step_s = 1 / (stream.average_rate or Fraction(25))
    # Packets may be fewer in a whole file: an edit list hides some in MP4, and AVI counts repeated
    # frames. There, the times reach the end nevertheless.
    if shown < promised and end_s + step_s / 2 < seconds:
        raise FileError(
            path,
            f"is truncated: its header promises {promised} frames and it has {shown}; copy or "
            "encode it again",
        )
    require_whole_segment(path)
    return shown


def _packets(container: InputContainer, path: Path) -> tuple[int, Fraction]:
    """The number of packets that are shown, and the time from the first one to the last one's end.

    Raises:
        UserError: the last packet is incomplete.
    """
    stream = picture_stream(container, path)
    step = 1 / (stream.average_rate or Fraction(25))
    unit = stream.time_base or Fraction(1, 25)
    count, first, last, incomplete = 0, None, 0, False
    try:
        for packet in container.demux(stream):
            if not packet.size:
                continue
            count += not packet.is_discard
            incomplete = packet.is_corrupt
            if (time := packet.pts if packet.pts is not None else packet.dts) is not None:
                first, last = time if first is None else min(first, time), max(last, time)
    except av.FFmpegError as error:
        raise FileError(
            path, f"is damaged after frame {count}: {error.strerror}; copy or encode it again"
        ) from None
    # A recorded broadcast may stop anywhere.
    if incomplete and container.format.name != "mpegts":
        raise FileError(
            path, f"is truncated: frame {count - 1} is incomplete; copy or encode it again"
        )
    return count, (last - (first or 0)) * unit + step


def require_whole_segment(path: Path) -> None:
    """Raise UserError if a Matroska file is shorter than its header says.

    FFmpeg takes the end of such a file for the end of the video.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != b"\x1a\x45\xdf\xa3":
                return
            size = _element_size(file)
            file.seek(size or 0, 1)
            if file.read(4) != _SEGMENT:
                return
            size = _element_size(file)
            missing = 0 if size is None else file.tell() + size - path.stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if missing > 0:
        raise FileError(path, f"is truncated: {missing} bytes are missing; copy or encode it again")


def _element_size(file: IO[bytes]) -> int | None:
    """Read the size of a Matroska element; None if it is unknown, as in a live recording."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    value = int.from_bytes(bytes([first[0] & (0xFF >> length)]) + rest, "big")
    return None if value == (1 << 7 * length) - 1 else value
