"""Super-resolve a stream of frames on a device and in tiles that the user, or the memory, sets."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from rich import filesize
from torch import nn

from fedvsr.data.colour import Samples
from fedvsr.environment import available_bytes
from fedvsr.errors import UserError
from fedvsr.inference.config import TileConfig
from fedvsr.inference.memory import CudaMeter, HostMeter, used_bytes
from fedvsr.inference.tile_choice import Limits, TileChooser
from fedvsr.inference.tiling import Blend, is_out_of_memory, super_resolve_frames
from fedvsr.models.spec import ModelSpec
from fedvsr.precision import Precision

# Called with the frames done so far and the frames in all (0 if unknown).
Progress = Callable[[float, int], None]
Say = Callable[[str], None]
Device = Literal["auto", "cpu", "cuda"]

# Frames that an encoder holds to look ahead, and its samples per pixel (4:2:0).
_ENCODER_FRAMES, _ENCODER_SAMPLES = 64, 1.5
# Bytes of frames that wait to be written, or are read in advance; but two frames at least, and no
# more than the windows of two networks.
_QUEUED_BYTES, _FEWEST, _MOST = 64 << 20, 2, 32


@dataclass(frozen=True)
class Compute:
    """The device, precision and tiles that a network computes with."""

    device: Device = "auto"
    precision: Precision = "fp32"
    blend: Blend = "ramp"
    tiles: TileConfig | None = None
    """None: chosen to suit the free memory."""
    memory_bytes: int | None = None
    """Memory limit; None: what the GPU has free, or half of what the system has."""

    @property
    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            UserError: a GPU is requested, and PyTorch sees none.
        """
        has_gpu = torch.cuda.is_available()
        if self.device == "cuda" and not has_gpu:
            raise UserError("--device cuda: PyTorch sees no GPU here; leave --device out")
        return torch.device("cuda" if has_gpu and self.device != "cpu" else "cpu")


def parse_tile(text: str) -> TileConfig:
    """Read a tile: `16x128` is 16 frames of 128 x 128 pixels, `16` is 16 whole frames.

    Raises:
        UserError: the text has another form.
    """
    frames, x, size = text.lower().partition("x")
    try:
        num_frames, pixels = int(frames), int(size) if x else None
        return TileConfig(
            frames=num_frames,
            size=pixels,
            overlap_frames=max(0, min(2, num_frames - 1)),
            overlap=16 if pixels is None else max(0, min(16, pixels // 4)),
        )
    except ValueError:
        raise UserError(
            f"--tile {text} is not of the form FRAMESxSIZE, e.g. 16x128, with a size of at least 8"
        ) from None


def queue_length(frame_bytes: int) -> int:
    """How many frames a queue before or behind the network holds."""
    return max(_FEWEST, min(_MOST, _QUEUED_BYTES // frame_bytes))


def super_resolve_stream(
    network: nn.Module,
    spec: ModelSpec,
    lq: Iterator[Samples],
    shape: tuple[int, int, int],
    compute: Compute,
    progress: Progress,
    say: Say,
    *,
    deep: bool = False,
) -> Iterator[Samples]:
    """Super-resolve low-resolution frames in tiles that fit into memory.

    Args:
        network: the network; it is moved to the device.
        spec: its size rules.
        lq: RGB (H, W, 3), uint8 or uint16.
        shape: (T, H, W); T is 0 if it is unknown.
        compute: the device, precision and tiles.
        progress: called after each tile.
        say: called with a line on the tile, if it is chosen here.
        deep: yield uint16 samples of 16 bits, not uint8.

    Yields:
        RGB (scale * H, scale * W, 3).

    Raises:
        UserError: memory does not suffice for the tile, or for any tile.
    """
    device = compute.torch_device
    network = network.to(device)
    num_frames, *size = shape

    run = partial(
        super_resolve_frames,
        network,
        spec,
        lq,
        blend=compute.blend,
        precision=compute.precision,
        progress=lambda done: progress(done, num_frames),
        deep=deep,
    )
    if compute.tiles is not None:
        yield from _refuse_too_large(run(compute.tiles))
        return
    meter = HostMeter() if device.type == "cpu" else CudaMeter()
    try:
        chooser = TileChooser(
            network,
            spec,
            (size[0], size[1]),
            _limits(compute, device, size[0] * size[1] * spec.scale**2 * (2 if deep else 1)),
            meter,
            compute.precision,
            num_frames,
        )
        chosen = chooser.choose()
        say(chooser.describe(chosen))
        yield from run(chosen, budget=_Announced(chooser, say))
    finally:
        if isinstance(meter, HostMeter):
            meter.close()


def _refuse_too_large(frames: Iterator[Samples]) -> Iterator[Samples]:
    """Frames of tiles that the user sets; running out of memory is an error in one line."""
    try:
        yield from frames
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise UserError(
            "memory does not suffice for this tile; give a smaller one, or leave --tile out"
        ) from None


class _Announced:
    """A budget that announces smaller tiles."""

    def __init__(self, chooser: TileChooser, say: Say) -> None:
        self.chooser, self.say = chooser, say

    def kept(self) -> bool:
        return self.chooser.kept()

    def smaller(self, tiles: TileConfig) -> TileConfig:
        tiles = self.chooser.smaller(tiles)
        self.say(f"memory did not suffice; now {self.chooser.describe(tiles)}")
        return tiles


def _limits(compute: Compute, device: torch.device, sr_bytes: int) -> Limits:
    """What the network and the frames in progress may take beyond what is taken now.

    `sr_bytes` are those of one channel of an output frame.
    """
    encoder = int(_ENCODER_FRAMES * _ENCODER_SAMPLES * sr_bytes)
    encoder += queue_length(3 * sr_bytes) * 3 * sr_bytes
    host = available_bytes() // 2 - encoder
    limit = compute.memory_bytes
    if device.type == "cpu":
        free = host if limit is None else limit - used_bytes() - encoder
        if free <= 0:
            raise UserError(
                f"{filesize.decimal(limit or available_bytes() // 2)} do not suffice: the program "
                f"and the network take {filesize.decimal(used_bytes())}, encoding about "
                f"{filesize.decimal(encoder)}; raise --memory"
            )
        return Limits(free, free, shared=True)
    free = torch.cuda.mem_get_info(device)[0]
    return Limits(free if limit is None else min(limit, free), host, shared=False)
