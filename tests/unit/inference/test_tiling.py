from __future__ import annotations

import gc
import itertools
from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fedvsr import models
from fedvsr.errors import UserError
from fedvsr.inference import tiling
from fedvsr.inference.config import TileConfig
from fedvsr.inference.tile_runner import TileRunner
from fedvsr.inference.tiling import super_resolve, super_resolve_frames
from fedvsr.models.spec import ModelSpec
from fedvsr.precision import Precision


class Ahead(TileRunner):
    """Starts a tile before the last one's output is used, as on a GPU."""

    def __init__(self, network: nn.Module, precision: Precision = "fp32") -> None:
        super().__init__(network, precision)
        self.ahead = 1


@pytest.fixture(params=[TileRunner, Ahead], autouse=True)
def _runner(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiling, "TileRunner", request.param)


class Nearest(nn.Module):
    """Enlarges by repeating, and records its input shapes. It is local, so tiles leave no trace."""

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


def test_tiles_are_no_larger_than_set() -> None:
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


def reference(network: nn.Module, spec: ModelSpec, lq: np.ndarray, tiles: TileConfig) -> np.ndarray:
    """The reference on whole arrays: pads everything, sums every tile, divides."""
    steps = (spec.frames_multiple, spec.size_multiple, spec.size_multiple)
    least = (spec.min_frames, spec.min_size, spec.min_size)
    whole = [-(-max(n, low) // m) * m for n, low, m in zip(lq.shape, least, steps, strict=False)]
    frames = torch.from_numpy(lq.copy())
    for axis, n in enumerate(whole):
        have = frames.shape[axis]
        mirrored = [min(i % (2 * have), 2 * have - 1 - i % (2 * have)) for i in range(n)]
        frames = frames.index_select(axis, torch.tensor(mirrored))
    wanted = (tiles.frames, tiles.size, tiles.size)
    sizes = [
        n if want is None else min(n, -(-max(want, low) // m) * m)
        for n, want, low, m in zip(whole, wanted, least, steps, strict=True)
    ]
    overlaps = (tiles.overlap_frames, tiles.overlap, tiles.overlap)
    starts = [
        sorted({*range(0, n - size, max(1, size - overlap)), n - size})
        for n, size, overlap in zip(whole, sizes, overlaps, strict=True)
    ]
    s = spec.scale
    total = torch.zeros(whole[0], 3, whole[1] * s, whole[2] * s)
    count = torch.zeros(whole[0], 1, whole[1] * s, whole[2] * s)
    for t, y, x in itertools.product(*starts):
        part = frames[t : t + sizes[0], y : y + sizes[1], x : x + sizes[2]]
        with torch.inference_mode():
            sr = network(part.permute(0, 3, 1, 2)[None].float() / 255)[0]
        rows, columns = slice(y * s, (y + sizes[1]) * s), slice(x * s, (x + sizes[2]) * s)
        total[t : t + sizes[0], :, rows, columns] += sr
        count[t : t + sizes[0], :, rows, columns] += 1
    mean = (total / count)[: lq.shape[0], :, : lq.shape[1] * s, : lq.shape[2] * s]
    return (mean.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


@pytest.fixture(scope="module")
def sharpening() -> nn.Module:
    """A network whose output depends on surroundings in space and time, so tiles are visible."""
    torch.manual_seed(0)
    network = models.build("tiny", channels=4, blocks=1).eval()
    nn.init.normal_(network.to_pixels.weight, std=0.1)
    return network


@pytest.mark.parametrize("num_frames", [1, 2, 5, 6, 7, 9, 14, 17, 23])
@pytest.mark.parametrize(
    ("frames", "overlap_frames", "min_frames", "multiple"),
    [(None, 2, 1, 1), (5, 2, 1, 1), (4, 1, 3, 2), (8, 2, 1, 8), (6, 5, 1, 3), (1, 0, 1, 1)],
)
def test_a_stream_gives_the_bits_of_the_whole_array(
    sharpening: nn.Module,
    num_frames: int,
    frames: int | None,
    overlap_frames: int,
    min_frames: int,
    multiple: int,
) -> None:
    lq = np.random.default_rng(num_frames).integers(0, 256, (num_frames, 11, 15, 3), np.uint8)
    spec = ModelSpec(4, 1e-9, min_frames, multiple, min_size=10, size_multiple=4)
    tiles = TileConfig(frames=frames, overlap_frames=overlap_frames, size=10, overlap=3)
    streamed = list(super_resolve_frames(sharpening, spec, iter(lq), tiles))
    np.testing.assert_array_equal(np.stack(streamed), reference(sharpening, spec, lq, tiles))


def live_tensor_bytes() -> int:
    storages = (x.untyped_storage() for x in gc.get_objects() if type(x) is Tensor)
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def test_memory_does_not_grow_with_the_length() -> None:
    def peaks(num_frames: int) -> tuple[int, int]:
        read = most_read_ahead = most_bytes = 0

        def source() -> Iterator[np.ndarray]:
            nonlocal read
            for _ in range(num_frames):
                read += 1
                yield np.zeros((8, 8, 3), np.uint8)

        tiles = TileConfig(frames=6, overlap_frames=2, size=8, overlap=2)
        spec = ModelSpec(2, 1e-9, frames_multiple=2)
        sr = super_resolve_frames(Nearest(), spec, source(), tiles)
        for num_yielded, _ in enumerate(sr):
            most_read_ahead = max(most_read_ahead, read - num_yielded)
            if num_yielded % 19 == 0:
                most_bytes = max(most_bytes, live_tensor_bytes())
        assert read == num_frames
        return most_read_ahead, most_bytes

    before = live_tensor_bytes()
    (ahead_40, bytes_40), (ahead_400, bytes_400) = peaks(40), peaks(400)
    # A window, the frames up to the next one, and one frame to see whether the clip goes on.
    assert ahead_40 == ahead_400 <= 6 + 4 + 1
    # A window of sums and weights of 16 x 16 pixels, and frames of a byte per channel.
    assert bytes_400 - before < 1.5 * 10 * 16 * 16 * 4 * 4
    assert bytes_400 <= bytes_40 * 1.1


class Halving:
    """A minimal budget."""

    def __init__(self, kept_for: int = 10**9) -> None:
        self.kept_for, self.asked = kept_for, list[TileConfig]()

    def kept(self) -> bool:
        self.kept_for -= 1
        return self.kept_for != 0

    def smaller(self, tiles: TileConfig) -> TileConfig:
        assert tiles.frames is not None
        self.asked.append(tiles)
        if tiles.frames == 1:
            raise UserError("no smaller tile")
        frames = tiles.frames // 2
        return TileConfig(frames=frames, overlap_frames=min(1, frames - 1), size=8, overlap=2)


class Limited(Nearest):
    """Runs out of memory above a number of frames, except in its first calls."""

    def __init__(self, most: int, error: Exception, first_calls: int = 3) -> None:
        super().__init__()
        self.most, self.error, self.first_calls = most, error, first_calls

    def forward(self, lq_BTCHW: Tensor) -> Tensor:
        if lq_BTCHW.shape[1] > self.most and len(self.shapes) >= self.first_calls:
            raise self.error
        return super().forward(lq_BTCHW)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to ..."),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
)
@pytest.mark.parametrize("blend", ["mean", "ramp"])
def test_out_of_memory_halves_the_tile_and_loses_no_frame(
    error: Exception, blend: Literal["mean", "ramp"]
) -> None:
    budget, network = Halving(), Limited(1, error)
    lq = np.random.default_rng(0).integers(0, 256, (21, 13, 18, 3), np.uint8)
    tiles = TileConfig(frames=4, overlap_frames=2, size=9, overlap=2)
    sr = list(
        super_resolve_frames(network, ModelSpec(2, 1e-9), lq, tiles, blend=blend, budget=budget)
    )
    assert [asked.frames for asked in budget.asked] == [4, 2]
    np.testing.assert_array_equal(np.stack(sr), lq.repeat(2, 1).repeat(2, 2))


def test_a_tile_over_the_limit_is_halved_before_the_next() -> None:
    budget, network = Halving(kept_for=2), Nearest()
    tiles = TileConfig(frames=4, overlap_frames=2, size=8, overlap=2)
    sr = list(super_resolve_frames(network, ModelSpec(2, 1e-9), LQ, tiles, budget=budget))
    assert [asked.frames for asked in budget.asked] == [4]
    assert [shape[1] for shape in network.shapes][:3] == [4, 4, 2]
    np.testing.assert_array_equal(np.stack(sr), EXPECTED)


@pytest.mark.parametrize("first_calls", [0, 2])
def test_the_last_window_may_fail_too(first_calls: int) -> None:
    network = Limited(2, torch.OutOfMemoryError("out"), first_calls)
    tiles = TileConfig(frames=7, overlap_frames=2, size=8, overlap=2)
    sr = list(super_resolve_frames(network, ModelSpec(2, 1e-9), LQ, tiles, budget=Halving()))
    np.testing.assert_array_equal(np.stack(sr), EXPECTED)


def test_a_window_of_one_tile_over_the_limit_is_kept() -> None:
    budget, network = Halving(kept_for=1), Nearest()
    tiles = TileConfig(frames=4, overlap_frames=2)
    sr = list(super_resolve_frames(network, ModelSpec(2, 1e-9), LQ, tiles, budget=budget))
    assert [asked.frames for asked in budget.asked] == [4]
    assert [shape[1] for shape in network.shapes][:2] == [4, 2]
    np.testing.assert_array_equal(np.stack(sr), EXPECTED)


def test_other_errors_and_no_budget_pass_through() -> None:
    tiles = TileConfig(frames=4, size=8, overlap=2)
    broken = Limited(0, RuntimeError("shapes do not match"))
    with pytest.raises(RuntimeError, match="shapes do not match"):
        list(super_resolve_frames(broken, ModelSpec(2, 1e-9), LQ, tiles, budget=Halving()))
    short = Limited(0, torch.OutOfMemoryError("out"))
    with pytest.raises(torch.OutOfMemoryError):
        list(super_resolve_frames(short, ModelSpec(2, 1e-9), LQ, tiles))
    with pytest.raises(UserError, match="no smaller tile"):
        list(super_resolve_frames(short, ModelSpec(2, 1e-9), LQ, tiles, budget=Halving()))


def test_a_ramp_leaves_no_seam() -> None:
    class Framing(Nearest):
        """Wrong by a tenth along the edges of its input, as convolutions are."""

        def forward(self, lq_BTCHW: Tensor) -> Tensor:
            sr = super().forward(lq_BTCHW).clone()
            sr[..., 0] += 0.1
            sr[..., -1] += 0.1
            return sr

    flat = np.full((2, 16, 64, 3), 100, np.uint8)
    tiles = TileConfig(size=16, overlap=8)
    wrong = {}
    for blend in ("mean", "ramp"):
        sr = np.stack(
            list(super_resolve_frames(Framing(), ModelSpec(2, 1e-9), flat, tiles, blend=blend))
        )
        wrong[blend] = np.abs(sr[:, :, 2:-2].astype(int) - 100).max()
    assert wrong["mean"] > 8
    assert wrong["ramp"] <= 1


def test_progress_counts_each_frame_once() -> None:
    done = list[float]()
    tiles = TileConfig(frames=3, overlap_frames=1, size=8, overlap=2)
    list(super_resolve_frames(Nearest(), ModelSpec(2, 1e-9), LQ, tiles, progress=done.append))
    assert done == sorted(done)
    assert done[-1] == len(LQ)


def test_an_empty_clip_and_frames_of_different_sizes() -> None:
    assert list(super_resolve_frames(Nearest(), ModelSpec(2, 1e-9), [], TileConfig())) == []
    with pytest.raises(ValueError, match="frame 1 is"):
        list(super_resolve_frames(Nearest(), ModelSpec(2, 1e-9), [LQ[0], LQ[0, 1:]], TileConfig()))
