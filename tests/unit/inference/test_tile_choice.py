from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.inference.memory import HostMeter, parse_bytes
from fedvsr.inference.tile_choice import Limits, TileChooser
from fedvsr.models.spec import ModelSpec


class Hungry(nn.Module):
    """Takes a known number of bytes: 50 MB, some per pixel, and some per pixel and frame."""

    def __init__(self, per_pixel: int, per_pixel_frame: int, most: float = float("inf")) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.per_pixel, self.per_pixel_frame, self.most = per_pixel, per_pixel_frame, most
        self.taken = 0
        self.base = 10**9

    def bytes_of(self, frames: int, height: int, width: int) -> int:
        return 50_000_000 + height * width * (self.per_pixel + frames * self.per_pixel_frame)

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        _, frames, _, height, width = lq_BTCHW.shape
        wanted = self.bytes_of(frames, height, width)
        if wanted > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.taken = max(self.taken, wanted)
        return torch.zeros(1, frames, 3, 1, 1)

    # A meter, too.
    def peak(self) -> int:
        return self.base + self.taken

    def reset(self) -> None:
        self.taken = 0


def chooser(
    network: Hungry, limit: int, *, shared: bool = False, size=(180, 320), **spec: int
) -> TileChooser:
    limits = Limits(limit, limit if shared else 10**12, shared)
    return TileChooser(network, ModelSpec(4, 1e-9, **spec), size, limits, network)


@pytest.mark.parametrize("per_pixel", [0, 3000, 40_000])
@pytest.mark.parametrize("limit", [300_000_000, 10**9, 6 * 10**9])
def test_the_tile_fits_and_is_not_far_from_the_largest(per_pixel: int, limit: int) -> None:
    network = Hungry(per_pixel, 5000)
    choice = chooser(network, limit)
    tiles = choice.choose()
    shape = choice._shape(tiles)
    assert network.bytes_of(*shape) <= limit
    assert network.bytes_of(*shape) > 0.4 * limit or shape == (40, 180, 320)
    assert choice.kept()


def test_whole_frames_and_long_tiles_if_memory_allows() -> None:
    tiles = chooser(Hungry(0, 1000), 10**11).choose()
    assert (tiles.frames, tiles.size, tiles.overlap_frames) == (40, None, 2)
    short = TileChooser(
        Hungry(0, 1000), ModelSpec(4, 1e-9, frames_multiple=4), (64, 64),
        Limits(10**11, 10**12, False), Hungry(0, 1000), num_frames=9,
    ).choose()  # fmt: skip
    assert short.frames == 12


def test_longer_tiles_are_preferred_to_whole_frames() -> None:
    # Three whole frames would fit, and a window of three finishes one.
    tiles = chooser(Hungry(0, 5000), 1_030_000_000).choose()
    assert tiles.frames is not None
    assert tiles.frames >= 6
    assert tiles.size is not None


def test_frames_in_progress_count_on_a_cpu() -> None:
    # 40 frames of 720 x 1280 output take 40 * 720 * 1280 * 19 bytes = 700 MB.
    network = Hungry(0, 300)
    assert chooser(network, 1_300_000_000).choose().frames == 40
    alone = chooser(network, 1_300_000_000, shared=True).choose()
    frames, height, width = chooser(network, 10**9)._shape(alone)
    held = frames * 720 * 1280 * 19
    assert network.bytes_of(frames, height, width) + held <= 1_300_000_000
    assert alone.frames is not None
    assert 20 <= alone.frames < 40


def test_smaller_halves_the_tile_down_to_the_smallest() -> None:
    network = Hungry(0, 5000)
    choice = chooser(network, 3 * 10**9, min_frames=4, min_size=64, size_multiple=8)
    tiles = choice.choose()
    volumes = list[int]()

    def halve_for_ever() -> None:
        nonlocal tiles
        while True:
            frames, height, width = choice._shape(tiles)
            assert frames >= 4
            assert height % 8 == width % 8 == 0
            volumes.append(frames * height * width)
            tiles = choice.smaller(tiles)

    with pytest.raises(UserError, match=r"a tile of 4 frames of 64 x 64 takes more; raise"):
        halve_for_ever()
    assert len(volumes) > 4
    halved = [2 * after <= before for before, after in pairwise(volumes)]
    assert all(halved[:-1]), "the last is the smallest"


def test_too_little_memory_is_one_line() -> None:
    with pytest.raises(
        UserError, match=r"50\.5 MB do not suffice for this network: a tile of .* of"
    ):
        chooser(Hungry(0, 5000), 50_500_000).choose()
    with pytest.raises(UserError, match="takes more; raise --memory"):
        chooser(Hungry(0, 5000, most=0), 10**12).choose()


def test_a_tile_over_the_limit_is_noticed() -> None:
    network = Hungry(0, 5000)
    choice = chooser(network, 10**9)
    tiles = choice.choose()
    network.taken = 10**9 + 1
    assert not choice.kept()
    assert "of 1.0 GB" in choice.describe(tiles)
    choice.smaller(tiles)
    assert choice.kept(), "the peak is reset"


def test_sizes() -> None:
    assert parse_bytes("8GiB") == 8 * 2**30
    assert parse_bytes("500 MB") == 500 * 10**6
    assert parse_bytes("1.5g") == 1_500_000_000
    assert parse_bytes("123") == 123
    for wrong in ("much", "", "8 gibibytes", "-1", "1.2.3GB"):
        with pytest.raises(UserError, match=r"--memory '.*' is not a size"):
            parse_bytes(wrong)


def test_the_host_meter_sees_what_comes_and_goes() -> None:
    meter = HostMeter()
    try:
        before = meter.peak()
        held = np.ones(128 << 20, np.uint8)
        del held
        assert 100 << 20 < meter.peak() - before < 180 << 20
        meter.reset()
        assert meter.peak() - before < 64 << 20
    finally:
        meter.close()
