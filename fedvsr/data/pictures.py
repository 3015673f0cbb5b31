"""Read and write pictures: 8 and 16 bits per sample, transparency and colour profiles."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import cast

import av
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from fedvsr.data.colour import Samples
from fedvsr.data.degrade import bicubic_upscale
from fedvsr.errors import FileError, UserError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".bmp"})
_PNG = b"\x89PNG\r\n\x1a\n"
# Where a PNG's header says how many bits a sample has, and its first chunk ends.
_DEPTH_AT, _HEADER_END = 24, 33
_ALPHA = {"LA", "PA", "La", "RGBA", "RGBa"}
_GREY = {"1", "L", "LA", "La", "I", "I;16", "I;16B"}


@contextmanager
def _opened(file: Path) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong in reading it is a UserError."""
    try:
        with Image.open(file) as picture:
            yield picture
    except UserError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        most = 2 * (Image.MAX_IMAGE_PIXELS or 0)
        raise FileError(
            file, f"is too large: a picture has at most {most:,} pixels; cut it into parts"
        ) from None
    except Exception as error:
        # Pillow raises nearly anything for a damaged file. The text of a system's error repeats
        # the path; Pillow's errors have only a text.
        reason = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
        raise FileError(file, f"is not a readable picture: {reason.splitlines()[0]}") from None


def size(file: Path) -> tuple[int, int]:
    """Height and width of a picture as it is shown; only its header is read.

    Raises:
        UserError: the picture is unreadable, or too large.
    """
    with _opened(file) as picture:
        width, height = picture.size
        # EXIF orientations from 5 on swap width and height.
        return (width, height) if picture.getexif().get(0x0112, 1) >= 5 else (height, width)


def bits(file: Path) -> int:
    """Bits per sample of a picture: 16 for a PNG with 16, else 8."""
    try:
        with file.open("rb") as opened:
            header = opened.read(_DEPTH_AT + 1)
    except OSError:
        return 8  # reported when the picture is read
    return 16 if header.startswith(_PNG) and header[_DEPTH_AT:] == b"\x10" else 8


def read(file: Path, *, deep: bool = False) -> Samples:
    """Read a picture as RGB (H, W, 3), upright.

    Args:
        file: the picture.
        deep: return uint16 samples of 16 bits, not uint8.

    Raises:
        UserError: the picture is unreadable or too large.
    """
    if bits(file) == 16:
        return _depth_of(_read_deep(file)[..., :3], deep)
    with _opened(file) as picture:
        if picture.mode.startswith(("I", "F")):
            raise FileError(file, "has samples of 32 bits; convert it to 16 or 8 bits")
        rgb = np.asarray(ImageOps.exif_transpose(picture).convert("RGB"))
    return _depth_of(rgb, deep)


def alpha(file: Path) -> Samples | None:
    """The opacity of a picture (H, W), uint8 or uint16; None if it has none."""
    with _opened(file) as picture:
        if not _has_alpha(picture):
            return None
        if bits(file) == 8:
            return np.asarray(ImageOps.exif_transpose(picture).convert("RGBA"))[..., 3]
    return _read_deep(file)[..., 3]


def profile(file: Path) -> bytes | None:
    """The colour profile of a picture, if it is one of RGB."""
    with _opened(file) as picture:
        data: bytes | None = picture.info.get("icc_profile")
    return data if data and data[16:20] == b"RGB " else None


def write(file: Path, rgb: Samples, alpha: Samples | None = None, icc: bytes | None = None) -> None:
    """Write a PNG with the depth of `rgb`.

    Args:
        file: the PNG.
        rgb: (H, W, 3), uint8 or uint16.
        alpha: opacity at a lower resolution, uint8 or uint16; it is enlarged to the size of `rgb`.
        icc: a colour profile.
    """
    deep = rgb.dtype == np.uint16
    if alpha is not None:
        peak = 65535 if deep else 255
        small = alpha[..., None].astype(np.float32) / np.iinfo(alpha.dtype).max
        large = bicubic_upscale(small, rgb.shape[0] // alpha.shape[0])
        coded = np.rint(np.clip(large, 0, 1) * peak).astype(rgb.dtype)
        rgb = cast("Samples", np.concatenate([rgb, coded], axis=-1))
    if not deep:
        # Lightest compression: at the default, large pictures take longer to compress than to make.
        Image.fromarray(rgb).save(file, compress_level=1, icc_profile=icc)
        return
    whole = np.ascontiguousarray(rgb).astype(np.uint16, copy=False)
    frame = av.VideoFrame.from_ndarray(whole, "rgb48be" if rgb.shape[-1] == 3 else "rgba64be")
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 25)
    encoder.options = {"compression_level": "1", "pred": "up"}
    data = b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode()])
    if icc is not None:
        body = b"iCCPICC profile\0\0" + zlib.compress(icc)
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        data = data[:_HEADER_END] + chunk + data[_HEADER_END:]
    file.write_bytes(data)


def losses(files: Iterable[Path], *, to_pictures: bool) -> Iterator[str]:
    """What of some pictures an enlarged clip does not keep, one line each."""
    kept, dropped = "is dropped", "are dropped"
    modes, profiles = set[str](), set[bytes]()
    transparent = False
    for file in files:
        # An unreadable picture raises later, when its frame is read.
        with suppress(UserError), _opened(file) as picture:
            modes.add(picture.mode)
            transparent = transparent or _has_alpha(picture)
            profiles.add((picture.info.get("icc_profile") or b"")[16:20])
    if transparent and not to_pictures:
        yield f"transparency {kept}: a video is written without it"
    if b"RGB " in profiles and not to_pictures:
        yield f"colour profiles {dropped}: a video is written without them"
    if profiles - {b"", b"RGB "}:
        yield f"colour profiles other than of RGB {dropped}"
    if others := modes - _GREY - {"RGB", "P"} - _ALPHA:
        yield f"pictures of {', '.join(sorted(others))} are converted to RGB"


def modes(files: Iterable[Path]) -> tuple[bool, bool]:
    """Whether any of some pictures is grey, and whether any is transparent."""
    grey = transparent = False
    for file in files:
        with suppress(UserError), _opened(file) as picture:
            grey = grey or picture.mode in _GREY
            transparent = transparent or _has_alpha(picture)
    return grey, transparent


def _has_alpha(picture: Image.Image) -> bool:
    return picture.mode in _ALPHA or "transparency" in picture.info


def _depth_of(rgb: npt.NDArray[np.uint8] | npt.NDArray[np.uint16], deep: bool) -> Samples:
    if deep and rgb.dtype == np.uint8:
        return rgb.astype(np.uint16) * 257
    if not deep and rgb.dtype == np.uint16:
        return ((rgb.astype(np.uint32) + 128) // 257).astype(np.uint8)
    return rgb


def _read_deep(file: Path) -> npt.NDArray[np.uint16]:
    """Read a PNG with 16 bits per sample as RGBA (H, W, 4), which Pillow reads with 8 bits."""
    with _opened(file) as picture:
        orientation = picture.getexif().get(0x0112, 1)
        # Pillow notices damage that FFmpeg passes over.
        picture.load()
    decoder = av.CodecContext.create("png", "r")
    assert isinstance(decoder, av.VideoCodecContext)
    decoder.thread_count = 1
    try:
        frames = [*decoder.decode(av.Packet(file.read_bytes())), *decoder.decode(None)]
    except av.FFmpegError as error:
        raise FileError(file, f"is not a readable picture: {error.strerror}") from None
    deep = frames[0].to_ndarray(format="rgba64le")
    return np.ascontiguousarray(_TURNS.get(orientation, lambda x: x)(deep))


# By the value of EXIF's orientation.
_TURNS = {
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.swapaxes(0, 1),
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].swapaxes(0, 1),
    8: lambda x: np.rot90(x, 1),
}
