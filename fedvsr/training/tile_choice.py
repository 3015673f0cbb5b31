"""Choose the tile by what the network is measured to take of memory.

T frames, H x W low-resolution height and width.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import product
from math import ceil

import torch
from torch import nn

from fedvsr.errors import UserError
from fedvsr.models._spec import ModelSpec
from fedvsr.training.inference import (
    TileConfig,
    is_out_of_memory,
    multiple_of,
    padded,
    run_tile,
    tile_shape,
)
from fedvsr.training.memory import Meter, show_bytes
from fedvsr.training.precision import Precision

# The published evaluations of VRT take 40 frames.
_FRAMES = (40, 32, 24, 20, 16, 12, 10, 8, 6, 5, 4, 3, 2, 1)
_SIZES = (None, 768, 640, 512, 448, 384, 320, 256, 224, 192, 160, 128, 112, 96, 80, 64, 48, 32, 16)
_OVERLAP_FRAMES, _OVERLAP = 2, 16
# Of a limit, what a tile may be predicted to take: the rest is for what the measure misses.
_CAREFUL = 0.9
# A probe is large enough once it takes so much memory, or so long.
_CLEAR_BYTES, _CLEAR_S = 256 << 20, 5.0
_WARM_UP_S = 1.0
# Sums and counts of a frame in progress, a byte of input and of output each channel.
_HELD_BYTES_PER_PIXEL = 3 * 4 + 2 + 3


@dataclass(frozen=True)
class Limits:
    """Bytes that may be taken, beyond what is taken before the first probe."""

    device: int
    """By the network, where it computes."""
    host: int
    """By the frames in progress."""
    shared: bool
    """The device is the host: the two come out of one."""


class TileChooser:
    """Fits bytes = a + b T H W to probes, and takes the tile that computes least per frame."""

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
        # Of a clip that is known to be short, no longer tiles are considered.
        self.most_frames = padded(spec, (min(num_frames or _FRAMES[0], _FRAMES[0]), 1, 1))[0]
        self.network, self.spec, self.precision = network, spec, precision
        self.canvas = padded(spec, (1, *size))[1:]
        self.limits, self.meter = limits, meter
        meter.reset()
        self.base = meter.peak()
        self.fixed = self.slope = 0.0

    def choose(self) -> TileConfig:
        """Probe, then choose the tile.

        Raises:
            UserError: not even the smallest fits.
        """
        self._probe()
        self.meter.reset()
        return self._best(_CAREFUL)

    def kept(self) -> bool:
        """Whether memory has stayed within the limit since the tile was chosen."""
        return self.meter.peak() - self.base <= self.limits.device

    def smaller(self, tiles: TileConfig) -> TileConfig:
        """Tiles that are predicted to take half of what grows with them.

        Raises:
            UserError: there are none.
        """
        half = self._growing(tiles) / 2
        options = [option for option in self._options() if self._growing(option) <= half]
        if not options:
            raise self._too_little(tiles)
        self.meter.reset()
        return min(options, key=self._cost)

    def describe(self, tiles: TileConfig) -> str:
        """One line on a tile."""
        frames, height, width = self._shape(tiles)
        whole = " (whole frames)" if (height, width) == self.canvas else ""
        need = self._device_bytes(tiles) + self.limits.shared * self._host_bytes(tiles)
        return (
            f"tiles of {frames} frames of {width} x {height}{whole}, about {show_bytes(need)} "
            f"of {show_bytes(self.limits.device)}"
        )

    def _probe(self) -> None:
        points, clear = list[tuple[int, int]](), False
        frames = padded(self.spec, (2, 1, 1))[0]
        size = multiple_of(max(32, self.spec.min_size), self.spec.size_multiple)
        while len(points) < 2 or not clear:
            tiles = TileConfig(frames=frames, size=size, overlap_frames=0, overlap=0)
            taken, wall_s = self._measure(tiles)
            if not points and wall_s < _WARM_UP_S:
                # The first call ever also makes what the later ones share.
                taken, wall_s = self._measure(tiles)
            points.append((self._volume(tiles), taken))
            clear = taken > _CLEAR_BYTES or wall_s > _CLEAR_S or 4 * taken > self.limits.device
            # Twice as wide and high; when frames are whole, longer.
            if size < max(self.canvas):
                size *= 2
            elif frames < self.most_frames:
                frames = multiple_of(2 * frames, self.spec.frames_multiple)
            else:
                break
        (small, before), (large, after) = points[-2:] if len(points) > 1 else points * 2
        # At the least, the tile itself as float32, in and out.
        least_slope = 12 * (1 + self.spec.scale**2)
        self.slope = max((after - before) / max(1, large - small), least_slope)
        self.fixed = max(0.0, after - self.slope * large)

    def _measure(self, tiles: TileConfig) -> tuple[int, float]:
        """Bytes over the base that a tile takes, and seconds."""
        device = next(self.network.parameters()).device
        lq_THWC = torch.zeros(*self._shape(tiles), 3, dtype=torch.uint8)
        self.meter.reset()
        started = time.perf_counter()
        try:
            run_tile(self.network, device, self.precision, lq_THWC)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise self._too_little(tiles) from None
        return max(0, self.meter.peak() - self.base), time.perf_counter() - started

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
        return self.fixed + self.slope * self._volume(tiles)

    def _host_bytes(self, tiles: TileConfig) -> float:
        height, width = self.canvas
        frames = self._shape(tiles)[0]
        return _HELD_BYTES_PER_PIXEL * frames * height * width * self.spec.scale**2

    def _growing(self, tiles: TileConfig) -> float:
        return self._device_bytes(tiles) - self.fixed + self._host_bytes(tiles)

    def _cost(self, tiles: TileConfig) -> tuple[float, int]:
        """Pixels computed for each frame that is finished; of equals, the longer tile.

        Smaller tiles overlap less, but see less, so the full overlap is counted for all.
        """
        frames, *sides = self._shape(tiles)
        per_window = float(frames)
        for side, n in zip(sides, self.canvas, strict=True):
            step = max(side - _OVERLAP, side / 8)
            per_window *= side * (1 if side == n else 1 + ceil((n - side) / step))
        return per_window / max(frames - _OVERLAP_FRAMES, frames / 8), -frames

    def _volume(self, tiles: TileConfig) -> int:
        frames, height, width = self._shape(tiles)
        return frames * height * width

    def _shape(self, tiles: TileConfig) -> tuple[int, ...]:
        assert tiles.frames is not None
        return tile_shape(self.spec, tiles, (tiles.frames, *self.canvas))

    def _too_little(self, tiles: TileConfig) -> UserError:
        frames, height, width = self._shape(tiles)
        return UserError(
            f"{show_bytes(self.limits.device)} do not suffice for this network: a tile of {frames} "
            f"frames of {width} x {height} takes more; raise --memory, or try --precision bf16"
        )
