from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvsr.models._spec import ModelSpec
from fedvsr.training.inference import TileConfig, super_resolve


class Nearest(nn.Module):
    """Enlarges by repeating, and remembers the shapes it was given. Local, so tiles cannot show."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))
        self.shapes = list[tuple[int, ...]]()

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        self.shapes.append(tuple(lq_BTCHW.shape))
        return lq_BTCHW.repeat_interleave(2, -1).repeat_interleave(2, -2)


LQ = np.random.default_rng(0).integers(0, 256, (7, 13, 18, 3), dtype=np.uint8)
EXPECTED = LQ.repeat(2, 1).repeat(2, 2)


@pytest.mark.parametrize(
    "tiles",
    [
        TileConfig(),
        TileConfig(frames=3, overlap_frames=1),
        TileConfig(size=8, overlap=3),
        TileConfig(frames=2, overlap_frames=0, size=9, overlap=0),
        TileConfig(frames=100, size=100),
    ],
)
@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(2, 1e-9),
        ModelSpec(2, 1e-9, min_frames=2, frames_multiple=2, min_size=16, size_multiple=8),
    ],
)
def test_any_tiles_and_sizes_give_the_whole(tiles: TileConfig, spec: ModelSpec) -> None:
    network = Nearest()
    np.testing.assert_array_equal(super_resolve(network, spec, LQ, tiles), EXPECTED)
    for _, frames, _, height, width in network.shapes:
        assert frames >= spec.min_frames
        assert frames % spec.frames_multiple == 0
        assert min(height, width) >= spec.min_size
        assert height % spec.size_multiple == width % spec.size_multiple == 0


def test_tiles_are_no_larger_than_asked_for() -> None:
    network = Nearest()
    tiles = TileConfig(frames=3, overlap_frames=1, size=8, overlap=2)
    super_resolve(network, ModelSpec(2, 1e-9), LQ, tiles)
    assert {shape[1:] for shape in network.shapes} == {(3, 3, 8, 8)}
    # Frames 0-2, 2-4, 4-6; rows 0-7, 5-12 (the last tile ends at the edge); columns 0, 6, 10.
    assert len(network.shapes) == 3 * 2 * 3


def test_output_is_clamped_and_rounded() -> None:
    class Beyond(Nearest):
        def forward(self, lq_BTCHW: Tensor) -> Tensor:
            return super().forward(lq_BTCHW) * 3 - 1

    sr = super_resolve(Beyond(), ModelSpec(2, 1e-9), LQ, TileConfig())
    expected = np.clip(EXPECTED.astype(int) * 3 - 255, 0, 255)
    assert np.abs(sr.astype(int) - expected).max() <= 1
