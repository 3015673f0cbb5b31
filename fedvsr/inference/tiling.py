"""Super-resolves clips of any length and size frame by frame, in tiles of space and time.

T frames, C channels, H x W height and width. Frames are RGB (H, W, 3), uint8 or uint16.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import product
from math import inf
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from fedvsr.data.clips import Frames
from fedvsr.data.colour import Samples
from fedvsr.inference.config import TileConfig
from fedvsr.inference.tile_runner import TileRunner
from fedvsr.mirror import mirrored
from fedvsr.models.spec import ModelSpec
from fedvsr.precision import Precision

# Called with the frames done so far; the frames of a window in progress count in part.
Progress = Callable[[float], None]
Blend = Literal["mean", "ramp"]


class Budget(Protocol):
    """A limit on memory, and the tiles to continue with when one exceeds it."""

    def kept(self) -> bool:
        """Whether the last tiles stayed within the limit."""

    def smaller(self, tiles: TileConfig) -> TileConfig:
        """Tiles that take about half the memory.

        Raises:
            UserError: `tiles` are the smallest.
        """


def super_resolve(
    network: nn.Module, spec: ModelSpec, lq_THWC: Frames, tiles: TileConfig
) -> Frames:
    """Super-resolve a clip that is in memory; see `super_resolve_frames`.

    Args:
        network: the network, on the device that computes.
        spec: its size rules.
        lq_THWC: uint8 RGB low-resolution frames.
        tiles: the tiles.

    Returns:
        uint8 RGB (T, scale * H, scale * W, 3).
    """
    frames = super_resolve_frames(network, spec, lq_THWC, tiles)
    return np.stack([*frames]).astype(np.uint8, copy=False)


def super_resolve_frames(
    network: nn.Module,
    spec: ModelSpec,
    lq: Iterable[Samples],
    tiles: TileConfig,
    *,
    blend: Blend = "mean",
    precision: Precision = "fp32",
    budget: Budget | None = None,
    progress: Progress | None = None,
    deep: bool = False,
) -> Iterator[Samples]:
    """Super-resolve frames as they arrive; a frame is yielded once no further tile covers it.

    A window of `tiles.frames` frames slides over the clip and is cut into tiles of space. Memory
    holds the frames of one window and the sums of its outputs, whatever the clip's length, which
    need not be known. Frames are padded by mirroring to a size that the network takes, and cropped
    afterwards.

    Args:
        network: maps (1, T, 3, H, W) in [0, 1] to (1, T, 3, scale * H, scale * W).
        spec: its size rules.
        lq: RGB low-resolution frames of one size, uint8 or uint16.
        tiles: the tiles.
        blend: weight of tiles that overlap in space: "mean" weighs all pixels alike, "ramp" lowers
            the weight towards a tile's inner edges, which leaves no seams.
        precision: the precision that the network computes in.
        budget: gives smaller tiles when `tiles` take too much memory; the window is then computed
            again, and no frame is lost. Without a budget the error is raised.
        progress: called after each tile.
        deep: yield uint16 samples of 16 bits, not uint8.

    Yields:
        RGB (scale * H, scale * W, 3), clamped and rounded, one for each frame.
    """
    runner, clip = TileRunner(network, precision), _Clip(lq, spec, deep)
    if not clip.reach(1):
        return
    # Tiles that are started but not yet added; on a GPU the newest computes meanwhile.
    started = deque[Callable[[], None]]()
    start, covered, final = 0, 0, False
    while not final:
        start, stop, final = _window(clip, tiles, start)
        complete = True
        for tile in _cut(clip, range(start, stop), tiles, blend, covered):
            complete = _begin(runner, clip, tile, started, budget, progress)
            while len(started) > (runner.ahead if complete else 0):
                started.popleft()()
            # No tile of an earlier window is left to add.
            while clip.first < start:
                yield clip.finish_first()
            complete = complete and (tile.last or budget is None or budget.kept())
            if not complete:
                break
        if budget and not (complete and (final or budget.kept())):
            tiles = budget.smaller(tiles)
        if complete:
            covered = stop
            start += max(1, stop - start - tiles.overlap_frames)
        else:
            # Outputs of the window's first tiles stay in the average: they are as good as the rest.
            final = False
    while started:
        started.popleft()()
    while clip.first < clip.num_read:
        yield clip.finish_first()


def tile_shape(spec: ModelSpec, tiles: TileConfig, clip: tuple[int, ...]) -> tuple[int, ...]:
    """(T, H, W) of the tiles into which a padded clip of (T, H, W) is cut."""
    wanted = (tiles.frames, tiles.size, tiles.size)
    least = padded(spec, (1, 1, 1))
    return tuple(
        n if want is None else min(n, multiple_of(max(want, low), step))
        for n, want, low, step in zip(clip, wanted, least, _steps(spec), strict=True)
    )


def padded(spec: ModelSpec, clip: tuple[int, ...]) -> tuple[int, ...]:
    """(T, H, W) of a clip after padding to a size that the network takes."""
    least = (spec.min_frames, spec.min_size, spec.min_size)
    sizes = zip(clip, least, _steps(spec), strict=True)
    return tuple(multiple_of(max(n, low), step) for n, low, step in sizes)


def multiple_of(n: int, step: int) -> int:
    """The smallest multiple of `step` that is at least `n`."""
    return -(-n // step) * step


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on the CPU or a GPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "not enough memory" in text or "can't allocate memory" in text or "out of memory" in text
    )


@dataclass
class _Output:
    """Weighted sum of the tiles of a frame so far."""

    total: Tensor
    """(C, H, W)."""
    weight: Tensor
    """(H, W)."""


class _Clip:
    """The frames that windows may still need, padded in space, and the outputs from `first` on."""

    def __init__(self, lq: Iterable[Samples], spec: ModelSpec, deep: bool) -> None:
        self.source, self.spec, self.deep = iter(lq), spec, deep
        self.first = self.num_read = 0
        self.ended = False
        self.frames, self.outputs = deque[Tensor](), deque[_Output]()
        self.size: tuple[int, ...] = ()
        self.padded: tuple[int, ...] = ()

    def reach(self, num_frames: float) -> bool:
        """Read until the clip has `num_frames` frames, or ends; return whether it has them."""
        while not self.ended and self.num_read < num_frames:
            frame = next(self.source, None)
            if frame is None:
                self.ended = True
                break
            if not self.size:
                self.size = frame.shape[:2]
                self.padded = padded(self.spec, (1, *self.size))[1:]
            if self.size != frame.shape[:2]:
                raise ValueError(f"frame {self.num_read} is {frame.shape[:2]}, not {self.size}")
            # PyTorch can do little with uint16.
            kind = np.uint8 if frame.dtype == np.uint8 else np.int32
            self.frames.append(_extended(torch.from_numpy(frame.astype(kind)), self.padded))
            self.num_read += 1
        return self.num_read >= num_frames

    def window(self, times: range) -> Tensor:
        """Frames, uint8 or int32 (T, H, W, 3). The clip is mirrored at its end, last repeated."""
        indices = (mirrored(t, self.num_read) for t in times)
        # The newest frame is the last of the queue.
        return torch.stack([self.frames[i - self.num_read] for i in indices])

    def add(
        self, sr_TCHW: Tensor, time: int, rows: slice, columns: slice, weight_HW: Tensor | None
    ) -> None:
        """Add a tile's output for the frames from `time` on; frames past the end are dropped."""
        for frame_idx, sr_CHW in zip(range(time, self.num_read), sr_TCHW, strict=False):
            if frame_idx - self.first == len(self.outputs):
                sides = [side * self.spec.scale for side in self.padded]
                self.outputs.append(_Output(torch.zeros(3, *sides), torch.zeros(*sides)))
            output = self.outputs[frame_idx - self.first]
            if weight_HW is None:
                output.total[:, rows, columns] += sr_CHW
                output.weight[rows, columns] += 1
            else:
                output.total[:, rows, columns].addcmul_(sr_CHW, weight_HW)
                output.weight[rows, columns] += weight_HW

    def finish_first(self) -> Samples:
        """Remove the first output and return it, RGB (scale * H, scale * W, 3)."""
        output = self.outputs.popleft()
        self.first += 1
        # Mirroring at the end may need this many frames before the first.
        while len(self.frames) > self.num_read - self.first + self.spec.frames_multiple - 1:
            self.frames.popleft()
        height, width = (side * self.spec.scale for side in self.size)
        mean_CHW = (output.total / output.weight)[:, :height, :width]
        rounded = (mean_CHW.clamp_(0, 1) * (65535 if self.deep else 255)).round_()
        kind = np.uint16 if self.deep else np.uint8
        return np.ascontiguousarray(rounded.permute(1, 2, 0).numpy().astype(kind))


def _window(clip: _Clip, tiles: TileConfig, start: int) -> tuple[int, int, bool]:
    """Start and stop of the window at `start`, and whether it is the last.

    The last window is moved back to stop at the clip's end.
    """
    spec = clip.spec
    if tiles.frames is None:
        clip.reach(inf)
    else:
        size = multiple_of(max(tiles.frames, spec.min_frames), spec.frames_multiple)
        if clip.reach(start + size + 1):
            return start, start + size, False
    whole = padded(spec, (clip.num_read, *clip.size))
    size = tile_shape(spec, tiles, whole)[0]
    last = whole[0] - size
    return (start, start + size, False) if start < last else (last, whole[0], True)


@dataclass(frozen=True)
class _Tile:
    """A part of a window, and where its output goes."""

    lq: Tensor
    """uint8 or int32 (T, H, W, 3)."""
    time: int
    """Its first frame."""
    rows: slice
    columns: slice
    weight: Tensor | None
    """(H, W) of the output's pixels; None: 1."""
    done: float
    """Frames done once this tile is, for `Progress`."""
    last: bool
    """Whether it is the window's last."""


def _cut(
    clip: _Clip, times: range, tiles: TileConfig, blend: Blend, before: int
) -> Iterator[_Tile]:
    """Cut a window into tiles; earlier windows end at frame `before`."""
    lq_THWC, scale = clip.window(times), clip.spec.scale
    _, height, width = tile_shape(clip.spec, tiles, (len(times), *clip.padded))
    rows, columns = (
        _starts(n, size, tiles.overlap)
        for n, size in zip(clip.padded, (height, width), strict=True)
    )
    after = min(times.stop, clip.num_read)
    for num_done, (y, x) in enumerate(product(rows, columns), 1):
        down, across = (slice(at * scale, (at + n) * scale) for at, n in ((y, height), (x, width)))
        weight_HW = None
        if blend == "ramp":
            sides = zip((y, x), (height, width), clip.padded, strict=True)
            ramps = (_ramp(at, n, whole, tiles.overlap, scale) for at, n, whole in sides)
            weight_HW = torch.outer(*ramps)
        part = num_done / (len(rows) * len(columns))
        yield _Tile(
            lq_THWC[:, y : y + height, x : x + width],
            times.start,
            down,
            across,
            weight_HW,
            before + max(0, after - before) * part,
            part == 1,
        )


def _begin(
    runner: TileRunner,
    clip: _Clip,
    tile: _Tile,
    started: deque[Callable[[], None]],
    budget: Budget | None,
    progress: Progress | None,
) -> bool:
    """Start a tile; return False if memory did not suffice."""
    try:
        result = runner.start(tile.lq)
    except (RuntimeError, MemoryError) as error:
        if budget is None or not is_out_of_memory(error):
            raise
        return False

    def finish() -> None:
        clip.add(result(), tile.time, tile.rows, tile.columns, tile.weight)
        if progress:
            progress(tile.done)

    started.append(finish)
    return True


def _steps(spec: ModelSpec) -> tuple[int, int, int]:
    return spec.frames_multiple, spec.size_multiple, spec.size_multiple


def _extended(frame: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Extend (H, W, 3) at the end of both axes to `shape` by mirroring, the edge repeated."""
    for axis, n in enumerate(shape):
        have = frame.shape[axis]
        if n > have:
            frame = frame.index_select(axis, mirrored(torch.arange(n), have))
    return frame


def _ramp(start: int, size: int, whole: int, overlap: int, scale: int) -> Tensor:
    """Weights (size * scale,) of a tile along an axis: 1, or lower where another tile overlaps."""
    weight, rise = torch.ones(size * scale), overlap * scale
    ramp = (torch.arange(rise) + 0.5) / max(1, rise)
    if start > 0:
        weight[:rise] = torch.minimum(weight[:rise], ramp)
    if start + size < whole and rise:
        weight[-rise:] = torch.minimum(weight[-rise:], ramp.flip(0))
    return weight


def _starts(n: int, size: int, overlap: int) -> list[int]:
    """Starts of the tiles of an axis; the last one ends with the axis, so every tile is whole."""
    return sorted({*range(0, n - size, max(1, size - overlap)), n - size})
