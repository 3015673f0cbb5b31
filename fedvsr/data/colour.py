"""Convert video frames to RGB and back, with the matrix and range that the video is tagged with.

libswscale is not used, because its conversion rounds down (by 1 level on average with its default
flags) and because some of its versions take BT.601 for videos that are tagged otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.errors import UserError

Samples = npt.NDArray[np.uint8] | npt.NDArray[np.uint16]
"""Frames or pictures, RGB (..., H, W, 3): uint8, or uint16 if they have more than 8 bits."""

_UNSPECIFIED = 2
_FULL = 2
# Kr and Kb of ITU-T H.273's matrix coefficients.
_MATRICES = {
    1: (0.2126, 0.0722),
    4: (0.30, 0.11),
    5: (0.299, 0.114),
    6: (0.299, 0.114),
    7: (0.212, 0.087),
    9: (0.2627, 0.0593),
}
# Other ways to code colour, which are not a matrix of luma and two differences, or not that alone.
_OTHER = {
    0: "RGB",
    8: "YCgCo",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    12: "by its primaries",
    13: "by its primaries, with constant luminance",
    14: "ICtCp",
    15: "IPT-C2",
    16: "YCgCo-Re",
    17: "YCgCo-Ro",
}
# Depths of which FFmpeg has every layout that is used here.
# Layouts of hardware decoders: samples of 16 bits, the lowest unused.
_INTERLEAVED = {"p010le", "p012le", "p016le"}
_DEPTHS = (8, 9, 10, 12, 14, 16)
_BT601, _BT709 = 6, 1
# Players take an untagged video that is larger than this for BT.709.
_SD_WIDTH, _SD_HEIGHT = 1279, 576


@dataclass(frozen=True)
class Colour:
    """How a video codes colour, in the numbers of ITU-T H.273; 2 is unspecified."""

    matrix: int = _BT601
    full_range: bool = False
    primaries: int = _UNSPECIFIED
    transfer: int = _UNSPECIFIED

    @classmethod
    def of(cls, stream: av.VideoStream) -> Colour:
        """How a stream codes colour, by its tags; an untagged matrix is guessed as players do.

        Raises:
            UserError: the colours are coded in a way that cannot be converted here.
        """
        context = stream.codec_context
        matrix = context.colorspace
        is_rgb = stream.format is not None and (stream.format.is_rgb or stream.format.has_palette)
        if matrix == _UNSPECIFIED or is_rgb:
            large = context.width > _SD_WIDTH or context.height > _SD_HEIGHT
            matrix = _BT709 if large else _BT601
        elif matrix not in _MATRICES:
            raise UserError(
                f"codes colour by matrix {matrix} ({_OTHER.get(matrix, 'reserved')}) of ITU-T "
                "H.273, which is not supported; convert it to BT.709 with another tool first"
            )
        full = context.color_range == _FULL or (context.pix_fmt or "").startswith("yuvj")
        return cls(matrix, full, context.color_primaries, context.color_trc)

    @property
    def is_hdr(self) -> bool:
        """Whether the samples follow the curve PQ or HLG."""
        return self.transfer in {16, 18}

    def tag(self, stream: av.VideoStream) -> None:
        """Tag a stream before it is encoded."""
        context = stream.codec_context
        context.colorspace = self.matrix
        context.color_range = _FULL if self.full_range else 1
        context.color_primaries = self.primaries
        context.color_trc = self.transfer

    def to_rgb(self, frame: av.VideoFrame, *, deep: bool = False) -> Samples:
        """Convert a decoded frame to RGB (H, W, 3).

        Args:
            frame: the frame.
            deep: return uint16 samples of 16 bits, not uint8.
        """
        bits = depth(frame)
        if frame.format.is_rgb or frame.format.has_palette:
            if bits == 8:
                rgb = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
                return rgb.astype(np.uint16) * 257 if deep else rgb
            planes = [_plane(plane, bits) for plane in _reformatted(frame, "gbrp", bits).planes]
            green, blue, red = (plane.mul_(255 / ((1 << bits) - 1)) for plane in planes)
            return _quantised(torch.stack([red, green, blue], dim=-1), deep)
        components = frame.format.components
        grey = len(components) < 3
        halved = not grey and (
            components[1].width < frame.width and components[1].height < frame.height
        )
        layout = "gray" if grey else "yuv420p" if halved else "yuv444p"
        interleaved = frame.format.name in _INTERLEAVED
        if not interleaved and frame.format.name != layout.replace("yuv", "yuvj"):
            # Matrix and range are the same on both sides, so only the layout changes.
            space, extent = self.matrix, _FULL if self.full_range else 1
            frame = _reformatted(
                frame,
                layout,
                bits,
                src_colorspace=space,
                dst_colorspace=space,
                src_color_range=extent,
                dst_color_range=extent,
            )
        planes = _apart(frame, bits) if interleaved else [_plane(p, bits) for p in frame.planes]
        coded = [plane.div_(1 << (bits - 8)) for plane in planes]
        if grey:
            coded += [torch.full_like(coded[0], 128) for _ in range(2)]
        elif halved:
            coded[1:] = (_enlarged(c, *coded[0].shape) for c in coded[1:])
        y_low, y_span, c_span = self._ranges(bits)
        kr, kb = _MATRICES[self.matrix]
        y = (coded[0] - y_low).mul_(255 / y_span)
        red = y + coded[2].sub_(128).mul_(510 / c_span * (1 - kr))
        blue = y + coded[1].sub_(128).mul_(510 / c_span * (1 - kb))
        green = (y - kr * red).sub_(blue, alpha=kb).div_(1 - kr - kb)
        return _quantised(torch.stack([red, green, blue], dim=-1), deep)

    def from_rgb(self, rgb: Samples, bits: int = 8) -> av.VideoFrame:
        """Convert RGB (H, W, 3) to a frame to encode: 4:2:0, or 4:4:4 if a side is odd.

        Args:
            rgb: uint8, or uint16 with 16 bits.
            bits: bits per sample of the frame: 8, 10 or 12.
        """
        height, width = rgb.shape[:2]
        halved = height % 2 == width % 2 == 0
        y_low, y_span, c_span = self._ranges(bits)
        kr, kb = _MATRICES[self.matrix]
        planes = torch.from_numpy(rgb.astype(np.float32)).permute(2, 0, 1)
        red, green, blue = planes if rgb.dtype == np.uint8 else planes / 257
        y = (kr * red).add_(green, alpha=1 - kr - kb).add_(blue, alpha=kb)
        cb, cr = (blue - y).mul_(c_span / 510 / (1 - kb)), (red - y).mul_(c_span / 510 / (1 - kr))
        if halved:
            cb, cr = _reduced(cb), _reduced(cr)
        coded = (y.mul_(y_span / 255).add_(y_low), cb.add_(128), cr.add_(128))
        frame = av.VideoFrame(width, height, pixel_format(width, height, bits))
        kind = np.dtype(np.uint8 if bits == 8 else "<u2")
        for plane, values in zip(frame.planes, coded, strict=True):
            padded = np.zeros((plane.height, plane.line_size // kind.itemsize), kind)
            scaled = values.mul_(1 << (bits - 8)).round_().clamp_(0, (1 << bits) - 1)
            padded[:, : plane.width] = scaled.numpy()
            plane.update(padded.tobytes())
        return frame

    def _ranges(self, bits: int) -> tuple[float, float, float]:
        """The code of black, and the spans of the codes of luma and of chroma, in units of 8 bits.

        The full range of 10 bits ends at 1023, which is 255.75 of these units.
        """
        if not self.full_range:
            return 16, 219, 224
        top = ((1 << bits) - 1) / (1 << (bits - 8))
        return 0, top, top


def depth(frame: av.VideoFrame) -> int:
    """Bits per sample of a frame, as it is read here: at most 16."""
    bits = max(part.bits for part in frame.format.components)
    if frame.format.has_palette:
        return 8
    return next((known for known in _DEPTHS if known >= bits), _DEPTHS[-1])


def pixel_format(width: int, height: int, bits: int) -> str:
    """The pixel format in which a frame is encoded: 4:2:0, or 4:4:4 if a side is odd."""
    layout = "yuv420p" if height % 2 == width % 2 == 0 else "yuv444p"
    return layout if bits == 8 else f"{layout}{bits}le"


def _reformatted(frame: av.VideoFrame, layout: str, bits: int, **colours: int) -> av.VideoFrame:
    name = layout if bits == 8 else f"{layout}{bits}le"
    return frame if frame.format.name == name else frame.reformat(format=name, **colours)


def _plane(plane: av.video.plane.VideoPlane, bits: int) -> Tensor:
    kind = np.dtype(np.uint8 if bits == 8 else "<u2")
    samples = np.frombuffer(memoryview(plane), kind).reshape(-1, plane.line_size // kind.itemsize)
    return torch.from_numpy(samples[: plane.height, : plane.width].astype(np.float32))


def _apart(frame: av.VideoFrame, bits: int) -> list[Tensor]:
    """The three planes of a 4:2:0 frame in which both of chroma are interleaved.

    Some releases of FFmpeg's scaler read memory that nobody wrote when they convert these.
    """
    luma, chroma = (
        np.frombuffer(memoryview(plane), "<u2").reshape(-1, plane.line_size // 2) >> (16 - bits)
        for plane in frame.planes
    )
    rows, columns = -(-frame.height // 2), -(-frame.width // 2)
    parts = (
        luma[: frame.height, : frame.width],
        chroma[:rows, : 2 * columns : 2],
        chroma[:rows, 1 : 2 * columns : 2],
    )
    return [torch.from_numpy(part.astype(np.float32)) for part in parts]


def _quantised(rgb: Tensor, deep: bool) -> Samples:
    """Round and clamp RGB from 0 to 255 to uint8, or spread it over uint16."""
    if deep:
        whole = rgb.mul_(257).round_().clamp_(0, 65535)
        return np.ascontiguousarray(whole.numpy().astype(np.uint16))
    return np.ascontiguousarray(rgb.round_().clamp_(0, 255).to(torch.uint8).numpy())


# Chroma samples of 4:2:0 lie on the even columns and between the rows, as in MPEG-2 and H.264.


def _enlarged(chroma: Tensor, height: int, width: int) -> Tensor:
    """Interpolate chroma of half the size to (height, width), linearly."""
    padded = F.pad(chroma[None], (0, 1, 1, 1), mode="replicate")[0]
    above, here, below = padded[:-2], padded[1:-1] * 0.75, padded[2:]
    rows = torch.stack([here.add(above, alpha=0.25), here.add(below, alpha=0.25)], dim=1)
    tall = rows.flatten(0, 1)
    wide = torch.stack([tall[:, :-1], torch.lerp(tall[:, :-1], tall[:, 1:], 0.5)], dim=2)
    return wide.flatten(1)[:height, :width]


def _reduced(chroma: Tensor) -> Tensor:
    """Halve both sides of chroma: rows by the mean of two, columns by weights 1, 2, 1."""
    short = (chroma[::2] + chroma[1::2]).mul_(0.5)
    before = torch.cat([short[:, :1], short[:, 1:-1:2]], dim=1)
    return (short[:, ::2] * 0.5).add_(before + short[:, 1::2], alpha=0.25)
