"""Super-resolve a stream of frames where and in what pieces the user, or the memory, says."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from fedvsr.data.clips import Frames
from fedvsr.errors import UserError
from fedvsr.inference.config import TileConfig
from fedvsr.inference.memory import CudaMeter, HostMeter, available_bytes, show_bytes, used_bytes
from fedvsr.inference.tile_choice import Limits, TileChooser
from fedvsr.inference.tiling import Blend, is_out_of_memory, super_resolve_frames
from fedvsr.models.spec import ModelSpec
from fedvsr.precision import Precision

# Called with the frames done, the frames in all (0 if unknown).
Progress = Callable[[float, int], None]
Say = Callable[[str], None]
Device = Literal["auto", "cpu", "cuda"]

# Frames that an encoder holds to look ahead, in 4:2:0.
_ENCODER_FRAMES, _ENCODER_BYTES = 64, 1.5


@dataclass(frozen=True)
class Compute:
    """Where and in what pieces a network computes."""

    device: Device = "auto"
    precision: Precision = "fp32"
    blend: Blend = "ramp"
    tiles: TileConfig | None = None
    """None: chosen by the memory there is."""
    memory_bytes: int | None = None
    """Limit; None: what a GPU has free, or half of what the system has."""

    @property
    def torch_device(self) -> torch.device:
        """The device.

        Raises:
            UserError: there is no GPU, and one is asked for.
        """
        there = torch.cuda.is_available()
        if self.device == "cuda" and not there:
            raise UserError("--device cuda: PyTorch sees no GPU here; leave --device out")
        return torch.device("cuda" if there and self.device != "cpu" else "cpu")


def parse_tile(text: str) -> TileConfig:
    """`16x128`: 16 frames of 128 x 128; `16`: of whole frames.

    Raises:
        UserError: it is neither.
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


def super_resolve_stream(
    network: nn.Module,
    spec: ModelSpec,
    lq: Iterator[Frames],
    shape: tuple[int, int, int],
    compute: Compute,
    progress: Progress,
    say: Say,
) -> Iterator[Frames]:
    """Super-resolve low-resolution frames in tiles that fit into memory.

    Args:
        network: the network; it is moved to the device.
        spec: its size rules.
        lq: uint8 RGB (H, W, 3).
        shape: (T, H, W); T is 0 if it is unknown.
        compute: where and in what pieces.
        progress: called after each tile.
        say: called with the tile that is chosen.

    Yields:
        uint8 RGB (scale * H, scale * W, 3).

    Raises:
        UserError: memory does not suffice.
    """
    device = compute.torch_device
    network = network.to(device)
    total, *size = shape

    def report(done: float) -> None:
        progress(done, total)

    if compute.tiles is not None:
        try:
            yield from super_resolve_frames(
                network,
                spec,
                lq,
                compute.tiles,
                blend=compute.blend,
                precision=compute.precision,
                progress=report,
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                "memory does not suffice for this tile; give a smaller one, or leave --tile out"
            ) from None
        return
    meter = HostMeter() if device.type == "cpu" else CudaMeter()
    try:
        chooser = TileChooser(
            network,
            spec,
            (size[0], size[1]),
            _limits(compute, device, size[0] * size[1] * spec.scale**2),
            meter,
            compute.precision,
            total,
        )
        chosen = chooser.choose()
        say(chooser.describe(chosen))
        yield from super_resolve_frames(
            network,
            spec,
            lq,
            chosen,
            blend=compute.blend,
            precision=compute.precision,
            budget=_Saying(chooser, say),
            progress=report,
        )
    finally:
        if isinstance(meter, HostMeter):
            meter.close()


class _Saying:
    """A budget that says when it makes tiles smaller."""

    def __init__(self, chooser: TileChooser, say: Say) -> None:
        self.chooser, self.say = chooser, say

    def kept(self) -> bool:
        return self.chooser.kept()

    def smaller(self, tiles: TileConfig) -> TileConfig:
        tiles = self.chooser.smaller(tiles)
        self.say(f"memory did not suffice; now {self.chooser.describe(tiles)}")
        return tiles


def _limits(compute: Compute, device: torch.device, sr_pixels: int) -> Limits:
    """What the network and the frames in progress may take more than is taken now."""
    encoder = int(_ENCODER_FRAMES * _ENCODER_BYTES * sr_pixels)
    host = available_bytes() // 2 - encoder
    asked = compute.memory_bytes
    if device.type == "cpu":
        room = host if asked is None else asked - used_bytes() - encoder
        if room <= 0:
            raise UserError(
                f"{show_bytes(asked or available_bytes() // 2)} do not suffice: the program and "
                f"the network take {show_bytes(used_bytes())}, encoding about "
                f"{show_bytes(encoder)}; raise --memory"
            )
        return Limits(room, room, shared=True)
    free = torch.cuda.mem_get_info(device)[0]
    return Limits(free if asked is None else min(asked, free), host, shared=False)
