"""Metadata of HDR10: the mastering display's colours and luminance, and the light levels."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import cast

import av

# Units of the SEI messages: chromaticities in 1/50000, luminance in 1/10000 cd/m2.
_CHROMATICITY, _LUMINANCE = 50000, 10000
# FFmpeg's AVMasteringDisplayMetadata: R, G, B and white (x, y), the least and most luminance, each
# a fraction, then whether the colours and the luminance are known.
_MASTERING = struct.Struct("=22i")


@dataclass(frozen=True)
class Hdr:
    """What a display needs to know of an HDR10 video, in the units of its SEI messages."""

    mastering: tuple[int, ...] | None = None
    """x, y of green, blue, red and white, then the most and the least luminance."""
    light: tuple[int, int] | None = None
    """The most light of a pixel, and of a frame on average, in cd/m2."""

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Hdr | None:
        """The metadata of a decoded frame; None if it has none that can be kept."""
        mastering = light = None
        if data := _side_data(frame, "MASTERING_DISPLAY_METADATA"):
            numbers = _MASTERING.unpack_from(data)
            values = [
                n / d if d else 0 for n, d in zip(numbers[:20:2], numbers[1:20:2], strict=True)
            ]
            rx, ry, gx, gy, bx, by, wx, wy, least, most = values
            if all(numbers[20:22]):
                colours = (round(v * _CHROMATICITY) for v in (gx, gy, bx, by, rx, ry, wx, wy))
                mastering = (*colours, round(most * _LUMINANCE), round(least * _LUMINANCE))
        if data := _side_data(frame, "CONTENT_LIGHT_LEVEL"):
            light = struct.unpack_from("=2I", data)
        return cls(mastering, light) if mastering or light else None

    def options(self, codec: str) -> list[str] | None:
        """Private options of an encoder that write the metadata; None if it has no such options."""
        names = {
            "libx264": ("mastering-display", "cll"),
            "libx265": ("master-display", "max-cll"),
        }.get(codec)
        if names is None:
            return None
        options = list[str]()
        if self.mastering:
            gx, gy, bx, by, rx, ry, wx, wy, most, least = self.mastering
            display = f"G({gx},{gy})B({bx},{by})R({rx},{ry})WP({wx},{wy})L({most},{least})"
            options.append(f"{names[0]}={display}")
        if self.light:
            options.append(f"{names[1]}={self.light[0]},{self.light[1]}")
        return options


def _side_data(frame: av.VideoFrame, kind: str) -> bytes | None:
    data = cast("memoryview | None", frame.side_data.get(kind))
    return None if data is None else bytes(data)
