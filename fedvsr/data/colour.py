"""Convert video frames to RGB and back, with the matrix and range that the video is tagged with.

libswscale is not used, because its conversion rounds down (by 1 level on average with its default
flags) and because some of its versions take BT.601 for videos that are tagged otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fedvsr.data.clips import Frames

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
    10: (0.2627, 0.0593),
}
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
        """How a stream codes colour, by its tags; an untagged matrix is guessed as players do."""
        context = stream.codec_context
        matrix = context.colorspace
        if matrix not in _MATRICES:
            large = context.width > _SD_WIDTH or context.height > _SD_HEIGHT
            matrix = _BT709 if large else _BT601
        full = context.color_range == _FULL or (context.pix_fmt or "").startswith("yuvj")
        return cls(matrix, full, context.color_primaries, context.color_trc)

    def tag(self, stream: av.VideoStream) -> None:
        """Tag a stream before it is encoded."""
        context = stream.codec_context
        context.colorspace = self.matrix
        context.color_range = _FULL if self.full_range else 1
        context.color_primaries = self.primaries
        context.color_trc = self.transfer

    def to_rgb(self, frame: av.VideoFrame) -> Frames:
        """Convert a decoded frame to uint8 RGB (H, W, 3); deeper samples are reduced to 8 bits."""
        if frame.format.is_rgb or frame.format.has_palette:
            return np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        components = frame.format.components
        grey = len(components) < 3
        halved = not grey and (
            components[1].width < frame.width and components[1].height < frame.height
        )
        layout = "gray" if grey else "yuv420p" if halved else "yuv444p"
        if frame.format.name not in {layout, layout.replace("yuv", "yuvj")}:
            # Matrix and range are the same on both sides, so only layout and depth change.
            space, extent = self.matrix, _FULL if self.full_range else 1
            frame = frame.reformat(
                format=layout,
                src_colorspace=space,
                dst_colorspace=space,
                src_color_range=extent,
                dst_color_range=extent,
            )
        coded = [_plane(plane) for plane in frame.planes]
        if grey:
            coded += [torch.full_like(coded[0], 128) for _ in range(2)]
        elif halved:
            coded[1:] = (_enlarged(c, *coded[0].shape) for c in coded[1:])
        y_low, y_span, c_span = self._ranges()
        kr, kb = _MATRICES[self.matrix]
        y = (coded[0] - y_low).mul_(255 / y_span)
        red = y + coded[2].sub_(128).mul_(510 / c_span * (1 - kr))
        blue = y + coded[1].sub_(128).mul_(510 / c_span * (1 - kb))
        green = (y - kr * red).sub_(blue, alpha=kb).div_(1 - kr - kb)
        return np.ascontiguousarray(_to_uint8(torch.stack([red, green, blue], dim=-1)).numpy())

    def from_rgb(self, rgb: Frames) -> av.VideoFrame:
        """Convert uint8 RGB (H, W, 3) to a frame to encode: 4:2:0, or 4:4:4 if a side is odd."""
        height, width = rgb.shape[:2]
        halved = height % 2 == width % 2 == 0
        y_low, y_span, c_span = self._ranges()
        kr, kb = _MATRICES[self.matrix]
        red, green, blue = torch.from_numpy(rgb).permute(2, 0, 1).float()
        y = (kr * red).add_(green, alpha=1 - kr - kb).add_(blue, alpha=kb)
        cb, cr = (blue - y).mul_(c_span / 510 / (1 - kb)), (red - y).mul_(c_span / 510 / (1 - kr))
        if halved:
            cb, cr = _reduced(cb), _reduced(cr)
        coded = (y.mul_(y_span / 255).add_(y_low), cb.add_(128), cr.add_(128))
        frame = av.VideoFrame(width, height, "yuv420p" if halved else "yuv444p")
        for plane, values in zip(frame.planes, coded, strict=True):
            padded = np.zeros((plane.height, plane.line_size), np.uint8)
            padded[:, : plane.width] = _to_uint8(values).numpy()
            plane.update(padded.tobytes())
        return frame

    def _ranges(self) -> tuple[int, int, int]:
        """The code of black, and the spans of the codes of luma and of chroma."""
        return (0, 255, 255) if self.full_range else (16, 219, 224)


def _plane(plane: av.video.plane.VideoPlane) -> Tensor:
    samples = np.frombuffer(memoryview(plane), np.uint8).reshape(-1, plane.line_size)
    return torch.from_numpy(samples[: plane.height, : plane.width].astype(np.float32))


def _to_uint8(values: Tensor) -> Tensor:
    return values.round_().clamp_(0, 255).to(torch.uint8)


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
