"""Copy the sound and subtitles of a video unchanged into an enlarged one, with their tags."""

from __future__ import annotations

import io
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.container import InputContainer, OutputContainer

from fedvsr.data.containers import opened, picture_stream
from fedvsr.errors import UserError

# Tags that a muxer writes itself, or that tell of the encoding that is replaced.
_OWN_TAGS = {"major_brand", "minor_version", "compatible_brands", "encoder", "vendor_id"}
_STATISTICS = ("BPS", "DURATION", "NUMBER_OF_", "_STATISTICS")


def fits(source: Path, container: str, *, sound: bool) -> bool:
    """Whether a container, by FFmpeg's name, can hold a video's subtitles, and its sound if asked.

    Raises:
        UserError: the source cannot be read.
    """
    with av.open(io.BytesIO(), "w", container) as out, opened(source) as container_in:
        return all(
            _fits(stream, out)
            for stream in container_in.streams
            if stream.type == "subtitle" or (stream.type == "audio" and sound)
        )


def losses(source: Path, container: str | None, *, sound: bool) -> Iterator[str]:
    """What of a video's tracks an enlarged one does not keep, one line each.

    Args:
        source: the video.
        container: FFmpeg's name of the container to write; None: pictures are written.
        sound: whether sound is copied; if not, the user has said so.

    Raises:
        UserError: the source cannot be read.
    """
    kinds = {"audio", "subtitle"} if sound else {"subtitle"}
    with opened(source) as container_in:
        pictures = picture_stream(container_in, source)
        if container is None:
            lost = [s for s in container_in.streams if s.type in kinds]
            if lost:
                yield f"{', '.join(map(_name, lost))}: not copied, because pictures are written"
            return
        with av.open(io.BytesIO(), "w", container) as out:
            for stream in container_in.streams:
                if stream.index == pictures.index or (stream.type == "audio" and not sound):
                    continue
                if stream.type not in {"audio", "subtitle"}:
                    yield f"{_name(stream)}: not copied"
                elif stream.type == "subtitle" and not _fits(stream, out):
                    # Sound that does not fit is an error, when the output is opened.
                    way_out = "" if container == "matroska" else "; write a .mkv to keep it"
                    yield f"{_name(stream)}: not copied, as {container} cannot hold it{way_out}"


def _fits(stream: Any, out: OutputContainer) -> bool:
    return stream.codec_context is not None and stream.codec_context.name in out.supported_codecs


def _name(stream: Any) -> str:
    """A track by its number, kind, codec, language and title or file name."""
    kinds = {"audio": "sound", "attachment": "attached file", "video": "video or cover picture"}
    kind = kinds.get(stream.type, stream.type)
    codec = stream.codec_context.name if stream.codec_context is not None else None
    tags = [codec, *(stream.metadata.get(key) for key in ("language", "title", "filename"))]
    named = ", ".join(tag for tag in tags if tag and tag != "und")
    return f"track {stream.index} ({kind}{': ' + named if named else ''})"


class Tracks:
    """Copies packets of sound and subtitles, no further than the video has been written.

    Args:
        source: the video that they are copied from.
        out: the video that is written; its picture stream exists.
        path: its name, for errors.
        sound: whether to copy sound.

    Raises:
        UserError: the container cannot hold the sound.
    """

    def __init__(
        self, source: InputContainer, out: OutputContainer, path: Path, *, sound: bool
    ) -> None:
        self.out = out
        self.streams = dict[int, Any]()
        for stream in source.streams:
            if stream.type not in {"audio", "subtitle"} or (stream.type == "audio" and not sound):
                continue
            if not _fits(stream, out):
                if stream.type == "audio":
                    codec = stream.codec_context.name if stream.codec_context else "unknown"
                    raise UserError(
                        f"{path.suffix} cannot hold sound of the codec {codec}; "
                        "write a .mkv, or leave the sound out with --no-sound"
                    )
                continue
            copy = out.add_stream_from_template(stream)
            copy_tags(stream, copy)
            self.streams[stream.index] = copy
        copied = [source.streams[index] for index in self.streams]
        starts = [
            stream.start_time * stream.time_base
            for stream in copied
            if stream.type == "audio" and stream.start_time is not None and stream.time_base
        ]
        self.start_s = min(starts, default=None)
        """When the first sound begins; None if no sound is copied, or that is unknown."""
        self._origin_s = Fraction(0)
        # By track: what is added to its times, the last time written, and when that packet ends.
        self._shift, self._last, self._next = dict[int, int](), dict[int, int](), dict[int, int]()
        # demux() without a stream would return the packets of all streams.
        self.packets: Iterator[av.Packet[Any]] = source.demux(*copied) if copied else iter(())
        self.waiting: av.Packet[Any] | None = None

    def begin(self, origin_s: Fraction) -> None:
        """Set the time of the source that is the output's zero."""
        self._origin_s = origin_s

    def copy_until(self, time_s: Fraction | None) -> None:
        """Copy the packets up to a time of the source; None: all that remain."""
        while (packet := self.waiting or next(self.packets, None)) is not None:
            self.waiting = None
            begin = packet.dts if packet.dts is not None else packet.pts
            if begin is None:  # the end of a stream
                continue
            if time_s is not None and begin * packet.time_base > time_s:
                self.waiting = packet
                return
            self._copy(packet, begin)

    def _copy(self, packet: av.Packet[Any], begin: int) -> None:
        index, length = packet.stream.index, packet.duration or 1
        time = begin + self._shift.setdefault(index, -round(self._origin_s / packet.time_base))
        if index in self._next and time < self._next[index] - length:
            # A recording whose clock was set back; muxers want times that rise.
            self._shift[index] += self._next[index] - time
            time = self._next[index]
        if packet.pts is not None:
            packet.pts += time - begin
        packet.dts = max(time, self._last.get(index, time - 1) + 1)
        self._last[index], self._next[index] = packet.dts, packet.dts + length
        packet.stream = self.streams[index]
        self.out.mux(packet)


def copy_tags(source: Any, copy: Any) -> None:
    """Copy a track's language, title and other tags, and whether it is the default one."""
    tags = kept_tags(source.metadata)
    # What MP4 calls a track's name, other containers call its title.
    if "name" in tags:
        tags.setdefault("title", tags.pop("name"))
    if "title" in tags:
        # Where players look for it in MP4; FFmpeg 7 writes no title there.
        tags["handler_name"] = tags["title"]
    copy.metadata.update(tags)
    copy.disposition = source.disposition.value


def kept_tags(tags: dict[str, str]) -> dict[str, str]:
    """The tags of a track or a file that are still true of its copy."""
    return {
        key: value
        for key, value in tags.items()
        if key.lower() not in _OWN_TAGS and not key.startswith(_STATISTICS)
    }
