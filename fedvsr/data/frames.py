"""Read a clip frame by frame, from a video or from a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import ClassVar, TypeAlias, cast

import av
import numpy as np

from fedvsr.data import pictures
from fedvsr.data.colour import Colour, Samples, depth
from fedvsr.data.containers import count_frames, decoded, opened, picture_stream
from fedvsr.data.deinterlace import progressive
from fedvsr.data.hdr import Hdr
from fedvsr.errors import FileError, UserError

# The number 1 in a display matrix, which has 16 binary places.
_ONE = 1 << 16
# Frames that are looked at to tell what a video is.
_FIRST_FRAMES = 4
# Side data of frames that is not passed on, by FFmpeg's names.
_NOT_KEPT = {
    "A53_CC": "closed captions",
    "DYNAMIC_HDR_PLUS": "HDR10+ metadata",
    "DYNAMIC_HDR_VIVID": "HDR Vivid metadata",
    "DOVI_RPU_BUFFER": "Dolby Vision metadata",
    "DOVI_METADATA": "Dolby Vision metadata",
    "ICC_PROFILE": "the colour profile",
    "SPHERICAL": "the spherical projection's tag",
    "STEREO3D": "the tag of stereoscopic video",
}


@dataclass(frozen=True)
class Video:
    """A video file. Frames are rotated as its metadata asks."""

    path: Path
    num_frames: int
    """By its header; 0 if the header gives no number. An edit list may hide some of them."""
    height: int
    width: int
    time_base: Fraction
    """Unit of the frames' times, in seconds."""
    rate: Fraction
    """Frames per second; the mean if it varies."""
    colour: Colour
    aspect: Fraction | None
    """Width of a pixel over its height; None if square or unknown."""
    has_sound: bool
    start: int = 0
    """Time of the first frame, in `time_base`."""
    depth: int = 8
    """Bits per sample."""
    interlaced: bool = False
    """Whether its first frames hold two moments each, in their odd and even rows."""
    hdr: Hdr | None = None
    lost: tuple[str, ...] = ()
    """What frames carry besides RGB that is not passed on, e.g. closed captions."""

    @classmethod
    def open(cls, path: Path) -> Video:
        """Read a video's header and first frames.

        Raises:
            UserError: the file cannot be read, is not a video, or codes colour in another way.
        """
        try:
            with opened(path) as container:
                stream = picture_stream(container, path)
                with closing(decoded(container, stream)) as frames:
                    first = [*islice(frames, _FIRST_FRAMES)]
                if not first:
                    raise FileError(path, "has no frames that can be decoded")
                return cls._of(path, stream, first, bool(container.streams.audio))
        except av.FFmpegError as error:
            raise FileError(path, f"is not a readable video: {error.strerror}") from None

    @classmethod
    def _of(
        cls, path: Path, stream: av.VideoStream, frames: list[av.VideoFrame], has_sound: bool
    ) -> Video:
        first = frames[0]
        rate = stream.average_rate or stream.guessed_rate or Fraction(25)
        try:
            colour = Colour.of(stream)
        except UserError as error:
            raise FileError(path, str(error)) from None
        height, width = _upright(colour.to_rgb(first), first).shape[:2]
        aspect = stream.sample_aspect_ratio
        if aspect and (height, width) != (first.height, first.width):
            aspect = 1 / aspect
        lost = {
            what
            for kind, what in _NOT_KEPT.items()
            if any(frame.side_data.get(kind) is not None for frame in frames)
        }
        if any(part.is_alpha for part in first.format.components):
            lost.add("transparency")
        return cls(
            path,
            stream.frames,
            height,
            width,
            stream.time_base or 1 / rate,
            rate,
            colour,
            aspect if aspect and aspect != 1 else None,
            has_sound,
            first.pts or 0,
            depth(first),
            any(frame.interlaced_frame for frame in frames),
            Hdr.of(first),
            tuple(sorted(lost)),
        )

    def frames(
        self,
        *,
        intact: bool = False,
        deep: bool = False,
        deinterlace: bool = False,
        say: Callable[[str], None] | None = None,
    ) -> Generator[tuple[Samples, int], None, None]:
        """Decode all frames in order; each call starts from the first.

        Close the generator if you do not read it to its end.

        Args:
            intact: raise if a frame is damaged and the decoder had to make up parts of it.
            deep: yield uint16 samples of 16 bits, not uint8.
            deinterlace: make progressive frames of interlaced ones, as many as there are.
            say: called with a line on frames that are damaged, at the end.

        Yields:
            A frame, RGB (H, W, 3), and the time at which it is shown, in `time_base`.

        Raises:
            UserError: a frame cannot be decoded or differs in size from the first, or the file ends
                before its contents do.
        """
        done, last, damaged = 0, -1, list[int]()
        # A frame without a time of its own follows its predecessor by the mean frame time.
        step = max(1, round(1 / self.rate / self.time_base))
        try:
            with (
                opened(self.path) as container,
                closing(decoded(container, picture_stream(container, self.path))) as coded,
            ):
                for frame in progressive(coded, self.time_base) if deinterlace else coded:
                    if frame.is_corrupt:
                        damaged.append(done)
                        if intact:
                            raise FileError(
                                self.path, f"is damaged in frame {done}; copy or encode it again"
                            )
                    rgb = _upright(self.colour.to_rgb(frame, deep=deep), frame)
                    _require_size(rgb, self, f"frame {done}")
                    time = frame.pts
                    if time is None or (done and time <= last):
                        time = last + step if done else 0
                    done, last = done + 1, time
                    yield rgb, time
        except av.FFmpegError as error:
            raise FileError(
                self.path,
                f"is damaged after frame {done}: {error.strerror}; copy or encode it again",
            ) from None
        if done < self.num_frames or not self.num_frames:
            count_frames(self.path)
        if damaged and say is not None:
            others = f"and {len(damaged) - 1} others are" if len(damaged) > 1 else "is"
            say(f"{self.path}: frame {damaged[0]} {others} damaged, and made up in part")


@dataclass(frozen=True)
class Folder:
    """A folder of pictures, in the natural order of their names (2 before 10)."""

    path: Path
    files: tuple[Path, ...]
    height: int
    width: int
    rate: Fraction
    colour: ClassVar[Colour] = Colour()
    aspect: ClassVar[None] = None

    @classmethod
    def open(cls, path: Path, rate: Fraction = Fraction(25)) -> Folder:
        """List a folder's pictures and read the first one.

        Raises:
            UserError: the folder has no pictures, or the first cannot be read.
        """
        files = tuple(sorted(_pictures(path), key=lambda file: natural(file.name)))
        if not files:
            raise UserError(f"{path} has no pictures ({', '.join(sorted(pictures.SUFFIXES))})")
        height, width = pictures.read(files[0]).shape[:2]
        return cls(path, files, height, width, rate)

    @property
    def num_frames(self) -> int:
        """The number of pictures."""
        return len(self.files)

    @property
    def time_base(self) -> Fraction:
        """Time between two frames, in seconds."""
        return 1 / self.rate

    @property
    def depth(self) -> int:
        """Bits per sample, of the picture with the most."""
        return max(map(pictures.bits, self.files))

    def frames(self, *, deep: bool = False) -> Generator[tuple[Samples, int], None, None]:
        """Read all pictures in order; see `Video.frames`."""
        for index, file in enumerate(self.files):
            rgb = pictures.read(file, deep=deep)
            _require_size(rgb, self, file.name)
            yield rgb, index


Source: TypeAlias = Video | Folder


def open_clip(path: Path, rate: Fraction = Fraction(25)) -> Source:
    """Open a video, or a folder of pictures that are shown at `rate` per second.

    Raises:
        UserError: the path is missing, or is neither a video nor a folder of pictures.
    """
    path = path.expanduser()
    try:
        is_folder, exists = path.is_dir(), path.exists()
    except OSError as error:  # e.g. the name is too long
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    if is_folder:
        return Folder.open(path, rate)
    if not exists:
        raise UserError(f"there is no video or folder {path}")
    return Video.open(path)


def clips_in(path: Path) -> list[Path]:
    """The clips that a path names: itself, or the videos and picture folders in it.

    Raises:
        UserError: the folder has no clips.
    """
    path = path.expanduser()
    if not path.is_dir() or any(_pictures(path)):
        return [path]
    inside = sorted(
        (entry for entry in path.iterdir() if not entry.name.startswith(".")),
        key=lambda entry: natural(entry.name),
    )
    clips = [entry for entry in inside if entry.is_file() or any(_pictures(entry))]
    if not clips:
        raise UserError(f"{path} has neither pictures nor videos nor folders of pictures")
    return clips


def natural(name: str) -> list[tuple[int, int, str]]:
    """Sorting key for names with numbers: 2 comes before 10."""
    parts = re.split(r"(\d+)", name)
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in parts if part]


def _pictures(folder: Path) -> Iterator[Path]:
    return (
        file
        for file in folder.iterdir()
        if file.suffix.lower() in pictures.SUFFIXES
        and not file.name.startswith(".")
        and file.is_file()
    )


def _require_size(rgb: Samples, source: Video | Folder, name: str) -> None:
    height, width = rgb.shape[:2]
    if (height, width) != (source.height, source.width):
        raise FileError(
            source.path,
            f": {name} has {width} x {height} pixels, the first "
            f"{source.width} x {source.height}; all frames of a clip need one size",
        )


def _upright(rgb: Samples, frame: av.VideoFrame) -> Samples:
    """Rotate by quarter turns and flip a frame, RGB (H, W, 3), by its display matrix."""
    data = cast("bytes | None", frame.side_data.get("DISPLAYMATRIX"))
    if data is None:
        return rgb
    a, b, _, c, d = np.frombuffer(data, np.int32)[:5]
    # The matrix takes (x, y) of the stored frame to (a x + c y, b x + d y) of the shown one.
    if a == d == 0 and abs(b) == abs(c) == _ONE:
        rgb = rgb.transpose(1, 0, 2)
        along_x, along_y = c, b
    elif b == c == 0 and abs(a) == abs(d) == _ONE:
        along_x, along_y = a, d
    else:
        return rgb
    turned = rgb[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1]
    return cast("Samples", np.ascontiguousarray(turned))
