from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvsr.data.clips import Clip, read_store, write_store
from fedvsr.data.degrade import bicubic_upscale
from fedvsr.data.sampling import epoch
from tests.conftest import moving_texture

OPTIONS: dict[str, Any] = {"batch_size": 3, "num_frames": 3, "crop": 16, "augment": True}


def store(tmp_path: Path) -> list[Clip]:
    with write_store(tmp_path / "store") as writer:
        for i in range(2):
            writer.add(f"c{i}", "texture", moving_texture(5, 32, 40, seed=i), 4)
    clips = read_store(tmp_path / "store")
    assert clips is not None
    return clips


def test_shapes_and_count(tmp_path: Path) -> None:
    batches = list(epoch(store(tmp_path), np.random.default_rng(0), **OPTIONS))
    assert [len(lq) for lq, _ in batches] == [3, 3, 3, 1], "two clips of five frames, one each"
    lq, gt = batches[0]
    assert lq.shape == (3, 3, 3, 4, 4)
    assert gt.shape == (3, 3, 3, 16, 16)
    assert gt.dtype == torch.float32
    assert 0 <= gt.min() < gt.max() <= 1


def test_same_seed_same_bits(tmp_path: Path) -> None:
    clips = store(tmp_path)
    first, second = (list(epoch(clips, np.random.default_rng(5), **OPTIONS)) for _ in range(2))
    assert all(torch.equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    other = list(epoch(clips, np.random.default_rng(6), **OPTIONS))
    assert not torch.equal(first[0][1], other[0][1])


def test_input_and_target_show_the_same_place_under_every_augmentation(tmp_path: Path) -> None:
    # Enlarging the input must come close to its own target, and to no other sample's.
    for lq, gt in epoch(store(tmp_path), np.random.default_rng(1), **OPTIONS):
        frames = lq.permute(0, 1, 3, 4, 2).numpy()
        large = torch.from_numpy(bicubic_upscale(frames)).permute(0, 1, 4, 2, 3)
        inside = (..., slice(4, -4), slice(4, -4))
        error = (large[inside] - gt[inside]).square().mean().sqrt()
        flipped = (large.flip(-1)[inside] - gt[inside]).square().mean().sqrt()
        assert error < 0.08
        assert error < 0.6 * flipped


def test_augmentation_draws_every_orientation(tmp_path: Path) -> None:
    # A frame of distinct corners, cropped whole: 2 x 2 flips x transposition are 8 orientations.
    gt = moving_texture(4, 16, 16)
    with write_store(tmp_path / "one") as writer:
        writer.add("c", "x", gt, 4)
    clips = read_store(tmp_path / "one") or []
    rng, seen = np.random.default_rng(0), set[bytes]()
    for _ in range(40):
        for _, target in epoch(clips, rng, **{**OPTIONS, "num_frames": 4, "batch_size": 1}):
            seen.add(target[0, 0].numpy().tobytes())
    assert len(seen) == 8
    still = {**OPTIONS, "num_frames": 4, "augment": False}
    (_, target), *_ = epoch(clips, rng, **still)
    np.testing.assert_allclose(target[0, 0].permute(1, 2, 0) * 255, gt[0], atol=1e-4)
