"""Chooses the tile by measuring how much memory the network takes.

T frames, H x W low-resolution height and width.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from rich import filesize
from torch import nn

from fedvsr.errors import UserError
from fedvsr.inference.config import TileConfig
from fedvsr.inference.memory import Meter
from fedvsr.inference.tile_runner import TileRunner
from fedvsr.inference.tiling import is_out_of_memory, multiple_of, padded, tile_shape
from fedvsr.models.spec import ModelSpec
from fedvsr.precision import Precision

# The published evaluations of VRT take 40 frames.
_FRAMES = (40, 32, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1)
_SIZES = (None, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 16)
_OVERLAP_FRAMES, _OVERLAP = 2, 16
# Part of the limit that a tile may be predicted to take; the rest is for what probes miss.
_SAFE_PART = 0.9
# A probe that takes this much memory, or this long, is large enough.
_CLEAR_BYTES, _CLEAR_S = 256 << 20, 5.0
_WARM_UP_S = 1.0
# For a frame in progress: three sums and a weight in float32, and three bytes of output.
_HELD_BYTES_PER_PIXEL = 3 * 4 + 4 + 3


@dataclass(frozen=True)
class Limits:
    """Bytes that may be taken beyond what is taken before the first probe."""

    device: int
    """Limit of the network, on the device that computes."""
    host: int
    """Limit of the frames in progress."""
    shared: bool
    """Whether the device is the host, so that both share one limit."""


@dataclass(frozen=True)
class _Point:
    """Memory and time that a probe took."""

    frames: int
    pixels: int
    taken: int
    """Bytes beyond those taken before it."""
    wall_s: float


class TileChooser:
    """Fits bytes = a + H W (b + c T) to probes, and takes the tile that computes least per frame.

    Both b and c are needed: some networks keep few features of a frame, but much while they compute
    one.
    """

    def __init__(
        self,
        network: nn.Module,
        spec: ModelSpec,
        size: tuple[int, int],
        limits: Limits,
        meter: Meter,
        precision: Precision = "fp32",
        num_frames: int = 0,
    ) -> None:
        # A tile need not be longer than the clip, if its length is known.
        self.most_frames = padded(spec, (min(num_frames or _FRAMES[0], _FRAMES[0]), 1, 1))[0]
        self.network, self.spec, self.precision = network, spec, precision
        self.canvas = padded(spec, (1, *size))[1:]
        self.limits, self.meter = limits, meter
        meter.reset()
        self.base = meter.peak()
        self._fixed = self._per_pixel = self._per_pixel_frame = 0.0

    def choose(self) -> TileConfig:
        """Probe, then choose the tile.

        Raises:
            UserError: not even the smallest tile fits.
        """
        self._probe()
        self.meter.reset()
        return self._best(_SAFE_PART)

    def kept(self) -> bool:
        """Whether memory has stayed within the limit since the tile was chosen."""
        return self.meter.peak() - self.base <= self.limits.device

    def smaller(self, tiles: TileConfig) -> TileConfig:
        """The cheapest tile predicted to take at most half the memory of `tiles`, or the smallest.

        Memory that does not depend on the tile is not counted.

        Raises:
            UserError: `tiles` are the smallest.
        """
        options, now = self._options(), self._growing(tiles)
        smallest = min(options, key=self._growing)
        if self._growing(smallest) >= now:
            raise self._too_little(smallest)
        self.meter.reset()
        half = [option for option in options if self._growing(option) <= now / 2]
        return min(half, key=self._cost, default=smallest)

    def describe(self, tiles: TileConfig) -> str:
        """A tile's size and memory in one line."""
        frames, height, width = self._shape(tiles)
        whole = " (whole frames)" if (height, width) == self.canvas else ""
        need = self._device_bytes(tiles) + self.limits.shared * self._host_bytes(tiles)
        return (
            f"tiles of {frames} frames of {width} x {height}{whole}, about "
            f"{filesize.decimal(round(need))} of {filesize.decimal(self.limits.device)}"
        )

    def _probe(self) -> None:
        """Fit `_fixed` and `_per_*`: over larger tiles of few frames, then over more frames."""
        frames = padded(self.spec, (2, 1, 1))[0]
        size = multiple_of(max(32, self.spec.min_size), self.spec.size_multiple)
        # The first call also sets up what later calls share, so it is repeated, unless it was slow.
        points = [self._measure(frames, size)]
        points = [points[0] if points[0].wall_s > _WARM_UP_S else self._measure(frames, size)]
        while size < max(self.canvas) and not (len(points) > 1 and self._clear(points[-1])):
            size *= 2
            points.append(self._measure(frames, size))
        longer = points[-1:]
        while frames < self.most_frames and not (len(longer) > 1 and self._clear(longer[-1])):
            frames = min(self.most_frames, multiple_of(2 * frames, self.spec.frames_multiple))
            longer.append(self._measure(frames, size))
        pixels = longer[-1].pixels
        # At least the tile itself as float32, input and output.
        least = 12 * (1 + self.spec.scale**2)
        per_frame = max(_slope(longer, [p.frames for p in longer]) / pixels, least)
        by_size = _slope(points, [p.pixels for p in points])
        self._per_pixel_frame = per_frame
        self._per_pixel = max(0.0, by_size - per_frame * points[-1].frames)
        grown = pixels * (self._per_pixel + per_frame * longer[-1].frames)
        self._fixed = max(0.0, longer[-1].taken - grown)

    def _clear(self, point: _Point) -> bool:
        """Whether a probe was large enough to fit by; the next might be too large."""
        large = 4 * point.taken > self.limits.device
        return large or point.taken > _CLEAR_BYTES or point.wall_s > _CLEAR_S

    def _measure(self, frames: int, size: int) -> _Point:
        tiles = TileConfig(frames=frames, size=size, overlap_frames=0, overlap=0)
        num_frames, height, width = self._shape(tiles)
        lq_THWC = torch.zeros(num_frames, height, width, 3, dtype=torch.uint8)
        self.meter.reset()
        started = time.perf_counter()
        try:
            TileRunner(self.network, self.precision).start(lq_THWC)()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_little(tiles) from None
        taken = max(0, self.meter.peak() - self.base)
        return _Point(num_frames, height * width, taken, time.perf_counter() - started)

    def _best(self, part: float) -> TileConfig:
        options = list(self._options())
        fitting = [option for option in options if self._fits(option, part)]
        if not fitting:
            raise self._too_little(min(options, key=self._growing))
        return min(fitting, key=self._cost)

    def _options(self) -> list[TileConfig]:
        options = list[TileConfig]()
        for num_frames, size in product(_FRAMES, _SIZES):
            frames = padded(self.spec, (min(num_frames, self.most_frames), 1, 1))[0]
            overlap_frames = min(_OVERLAP_FRAMES, frames - 1)
            if size is None:
                options.append(TileConfig(frames=frames, overlap_frames=overlap_frames))
                continue
            size = multiple_of(max(size, self.spec.min_size), self.spec.size_multiple)
            overlap = min(_OVERLAP, size // 4)
            options.append(
                TileConfig(frames=frames, size=size, overlap_frames=overlap_frames, overlap=overlap)
            )
        return options

    def _fits(self, tiles: TileConfig, part: float) -> bool:
        device, host = self._device_bytes(tiles), self._host_bytes(tiles)
        if self.limits.shared:
            return device + host <= part * self.limits.device
        return device <= part * self.limits.device and host <= part * self.limits.host

    def _device_bytes(self, tiles: TileConfig) -> float:
        frames, height, width = self._shape(tiles)
        grown = height * width * (self._per_pixel + self._per_pixel_frame * frames)
        return self._fixed + grown

    def _host_bytes(self, tiles: TileConfig) -> float:
        height, width = self.canvas
        frames = self._shape(tiles)[0]
        return _HELD_BYTES_PER_PIXEL * frames * height * width * self.spec.scale**2

    def _growing(self, tiles: TileConfig) -> float:
        return self._device_bytes(tiles) - self._fixed + self._host_bytes(tiles)

    def _cost(self, tiles: TileConfig) -> tuple[float, int]:
        """Pixels computed for each finished frame; the longer tile wins a tie.

        Smaller tiles overlap less, but see less, so the full overlap is counted for all tiles.
        """
        frames, *sides = self._shape(tiles)
        per_window = float(frames)
        for side, n in zip(sides, self.canvas, strict=True):
            step = max(side - _OVERLAP, side / 8)
            per_window *= side * (1 if side == n else 1 + ceil((n - side) / step))
        return per_window / max(frames - _OVERLAP_FRAMES, frames / 8), -frames

    def _shape(self, tiles: TileConfig) -> tuple[int, ...]:
        assert tiles.frames is not None
        return tile_shape(self.spec, tiles, (tiles.frames, *self.canvas))

    def _too_little(self, tiles: TileConfig) -> UserError:
        frames, height, width = self._shape(tiles)
        return UserError(
            f"{filesize.decimal(self.limits.device)} do not suffice for this network: a tile of "
            f"{frames} frames of {width} x {height} takes more; raise --memory, or try --precision "
            "bf16"
        )


def _slope(points: Sequence[_Point], by: Sequence[int]) -> float:
    """Bytes that the last probe took more than the one before it, per unit of `by`."""
    if len(points) < 2 or by[-1] == by[-2]:
        return 0.0
    return max(0, points[-1].taken - points[-2].taken) / (by[-1] - by[-2])
