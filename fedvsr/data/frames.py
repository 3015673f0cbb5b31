"""Read a clip frame by frame, from a video or from a folder of pictures."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import ClassVar, TypeAlias, cast

import av
import numpy as np
from PIL import Image, ImageOps

from fedvsr.data.clips import Frames
from fedvsr.data.colour import Colour
from fedvsr.errors import FileError, UserError

PICTURES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
# The number 1 in a display matrix, which has 16 binary places.
_ONE = 1 << 16


@dataclass(frozen=True)
class Video:
    """A video file. Frames are rotated as its metadata asks."""

    path: Path
    num_frames: int
    """By its header; 0 if the header gives no number."""
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

    @classmethod
    def open(cls, path: Path) -> Video:
        """Read a video's header and first frame.

        Raises:
            UserError: the file cannot be read, or is not a video.
        """
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise FileError(path, "has no video stream")
                stream = container.streams.video[0]
                first = next(container.decode(stream), None)
                if first is None:
                    raise FileError(path, "has no frames that can be decoded")
                rate = stream.average_rate or stream.guessed_rate or Fraction(25)
                colour = Colour.of(stream)
                height, width = _upright(colour.to_rgb(first), first).shape[:2]
                aspect = stream.sample_aspect_ratio
                if aspect and (height, width) != (first.height, first.width):
                    aspect = 1 / aspect
                return cls(
                    path,
                    stream.frames,
                    height,
                    width,
                    stream.time_base or 1 / rate,
                    rate,
                    colour,
                    aspect if aspect and aspect != 1 else None,
                    bool(container.streams.audio),
                )
        except av.FFmpegError as error:
            raise FileError(path, f"is not a readable video: {error.strerror}") from None

    def frames(self, *, intact: bool = False) -> Iterator[tuple[Frames, int]]:
        """Decode all frames in order; each call starts from the first.

        Args:
            intact: raise if a frame is damaged and the decoder had to make up parts of it.

        Yields:
            A frame, uint8 RGB (H, W, 3), and the time at which it is shown, in `time_base`.

        Raises:
            UserError: a frame cannot be decoded or differs in size from the first, or the file ends
                before the number of frames in its header.
        """
        done, last = 0, -1
        # A frame without a time of its own follows its predecessor by the mean frame time.
        step = max(1, round(1 / self.rate / self.time_base))
        try:
            with av.open(str(self.path)) as container:
                container.streams.video[0].thread_type = "AUTO"
                for frame in container.decode(video=0):
                    if intact and frame.is_corrupt:
                        raise FileError(
                            self.path, f"is damaged in frame {done}; copy or encode it again"
                        )
                    rgb = _upright(self.colour.to_rgb(frame), frame)
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
        if done < self.num_frames:
            raise FileError(
                self.path,
                f"is truncated: its header promises {self.num_frames} frames and it "
                f"has {done}; copy or encode it again",
            )


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
            raise UserError(f"{path} has no pictures ({', '.join(sorted(PICTURES))})")
        height, width = _picture(files[0]).shape[:2]
        return cls(path, files, height, width, rate)

    @property
    def num_frames(self) -> int:
        """The number of pictures."""
        return len(self.files)

    @property
    def time_base(self) -> Fraction:
        """Time between two frames, in seconds."""
        return 1 / self.rate

    def frames(self) -> Iterator[tuple[Frames, int]]:
        """Read all pictures in order; see `Video.frames`."""
        for index, file in enumerate(self.files):
            rgb = _picture(file)
            _require_size(rgb, self, file.name)
            yield rgb, index


Source: TypeAlias = Video | Folder


def open_clip(path: Path, rate: Fraction = Fraction(25)) -> Source:
    """Open a video, or a folder of pictures that are shown at `rate` per second.

    Raises:
        UserError: the path is missing, or is neither a video nor a folder of pictures.
    """
    path = path.expanduser()
    if path.is_dir():
        return Folder.open(path, rate)
    if not path.exists():
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
        if file.suffix.lower() in PICTURES and not file.name.startswith(".") and file.is_file()
    )


def unreadable(file: Path, error: OSError | SyntaxError) -> UserError:
    """The error for a picture that Pillow cannot read."""
    # The text of a system's error repeats the path; Pillow's errors have only a text.
    reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    return UserError(f"{file} is not a readable picture: {reason.splitlines()[0]}")


def _picture(file: Path) -> Frames:
    try:
        with Image.open(file) as picture:
            if picture.mode.startswith(("I", "F")):
                raise UserError(f"{file} has more than 8 bits per sample; convert it to 8 bits")
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise unreadable(file, error) from None


def _require_size(rgb: Frames, source: Video | Folder, name: str) -> None:
    height, width = rgb.shape[:2]
    if (height, width) != (source.height, source.width):
        raise FileError(
            source.path,
            f": {name} has {width} x {height} pixels, the first "
            f"{source.width} x {source.height}; all frames of a clip need one size",
        )


def _upright(rgb: Frames, frame: av.VideoFrame) -> Frames:
    """Rotate by quarter turns and flip a frame, uint8 RGB (H, W, 3), by its display matrix."""
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
    return np.ascontiguousarray(rgb[:: -1 if along_y < 0 else 1, :: -1 if along_x < 0 else 1])
