from __future__ import annotations

import mmap
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fedvsr.data.clips import Clip
from fedvsr.data.degrade import bicubic_upscale
from fedvsr.data.sampling import Draw, pages_of, passes, read_batch, to_float
from fedvsr.data.shape import SampleShape
from tests.conftest import moving_texture
from tests.unit.data.clips import write_store

SHAPE = SampleShape(num_frames=3, crop=16, augment=True)


def store(tmp_path: Path) -> list[Clip]:
    frames = {f"c{i}": moving_texture(5, 32, 40, seed=i) for i in range(2)}
    return write_store(tmp_path / "store", frames)


def numbered(tmp_path: Path, num_frames: int = 10) -> Clip:
    """A clip whose frame t has the value t everywhere."""
    gt = np.broadcast_to(
        np.arange(num_frames, dtype=np.uint8)[:, None, None, None], (num_frames, 16, 16, 3)
    )
    (clip,) = write_store(tmp_path / "numbered", {"n": gt})
    return clip


def frames_shown(clip: Clip, start: int, shape: SampleShape, seed: int = 0) -> list[int]:
    lq, gt = read_batch([Draw(clip, start, seed)], shape)
    assert torch.equal(lq[0, :, 0, 0, 0], gt[0, :, 0, 0, 0])
    return gt[0, :, 0, 0, 0].tolist()


def test_a_pass_starts_once_from_every_frame(tmp_path: Path) -> None:
    clips = store(tmp_path)
    batches = list(islice(passes(clips, 0, batch_size=3), 8))
    assert [len(batch) for batch in batches] == [3, 3, 3, 1] * 2
    draws = [draw for batch in batches for draw in batch]
    for one in (draws[:10], draws[10:]):
        named = {(draw.clip.clip_id, draw.start) for draw in one}
        assert named == {(clip.clip_id, start) for clip in clips for start in range(5)}
    assert [d.start for d in draws[:10]] != [d.start for d in draws[10:]], (
        "every pass has its own order"
    )
    assert len({draw.seed for draw in draws}) == 20


def test_the_order_does_not_depend_on_the_batch_size(tmp_path: Path) -> None:
    clips = store(tmp_path)
    one, three = (
        [d for batch in islice(passes(clips, 0, size), n) for d in batch]
        for size, n in ((1, 20), (3, 8))
    )
    assert one == three
    assert one != [d for batch in islice(passes(clips, 1, 1), 20) for d in batch]


def test_shapes(tmp_path: Path) -> None:
    (draws,) = islice(passes(store(tmp_path), 0, 3), 1)
    lq, gt = read_batch(draws, SHAPE)
    assert (lq.shape, gt.shape) == ((3, 3, 3, 4, 4), (3, 3, 3, 16, 16))
    assert lq.dtype == gt.dtype == torch.uint8
    as_float = to_float(gt, torch.device("cpu"))
    assert as_float.dtype == torch.float32
    assert 0 <= as_float.min() < as_float.max() <= 1
    np.testing.assert_array_equal((as_float * 255).round().numpy(), gt.numpy())


def test_a_sample_follows_from_its_own_seed(tmp_path: Path) -> None:
    clips = store(tmp_path)
    (draws,) = islice(passes(clips, 5, 10), 1)
    _, together = read_batch(draws, SHAPE)
    alone = torch.cat([read_batch([draw], SHAPE)[1] for draw in reversed(draws)]).flip(0)
    assert torch.equal(together, alone)
    _, other = read_batch([replace(draw, seed=draw.seed + 1) for draw in draws], SHAPE)
    assert not torch.equal(together, other)


def test_input_and_target_show_the_same_place_under_every_augmentation(tmp_path: Path) -> None:
    # The enlarged input must be close to its own target, and not to another sample's.
    for draws in islice(passes(store(tmp_path), 1, 3), 4):
        lq, gt = (to_float(frames, torch.device("cpu")) for frames in read_batch(draws, SHAPE))
        frames = lq.permute(0, 1, 3, 4, 2).numpy()
        large = torch.from_numpy(bicubic_upscale(frames)).permute(0, 1, 4, 2, 3)
        inside = (..., slice(4, -4), slice(4, -4))
        error = (large[inside] - gt[inside]).square().mean().sqrt()
        flipped = (large.flip(-1)[inside] - gt[inside]).square().mean().sqrt()
        assert error < 0.08
        assert error < 0.6 * flipped


def test_augmentation_draws_every_orientation(tmp_path: Path) -> None:
    # The crop is the whole frame, and its corners differ: 2 x 2 flips and a transposition give 8.
    gt = moving_texture(4, 16, 16)
    clips = write_store(tmp_path / "one", {"c": gt})
    whole = replace(SHAPE, num_frames=4)
    seen = {
        read_batch(draws, whole)[1][0, 0].numpy().tobytes()
        for draws in islice(passes(clips, 0, 1), 160)
    }
    assert len(seen) == 8
    _, target = read_batch([Draw(clips[0], 0, 1)], replace(whole, augment=False))
    np.testing.assert_array_equal(target[0].permute(0, 2, 3, 1), gt)


def test_crops_reach_every_place(tmp_path: Path) -> None:
    clip = store(tmp_path)[0]
    shape = SampleShape(num_frames=1, crop=16)
    seen = {read_batch([Draw(clip, 0, seed)], shape)[0].numpy().tobytes() for seed in range(400)}
    assert len(seen) == 5 * 7, "8 x 10 input pixels hold crops of 4 x 4 in 5 x 7 places"


def test_frames_follow_each_other_by_the_interval(tmp_path: Path) -> None:
    clip = numbered(tmp_path)
    shape = SampleShape(num_frames=4, crop=16)
    assert frames_shown(clip, 2, shape) == [2, 3, 4, 5]
    assert frames_shown(clip, 0, replace(shape, interval=3)) == [0, 3, 6, 9]
    assert frames_shown(clip, 6, shape) == [6, 7, 8, 9]


def test_a_start_too_late_is_redrawn(tmp_path: Path) -> None:
    clip, shape = numbered(tmp_path), SampleShape(num_frames=4, crop=16, interval=2)
    shown = [frames_shown(clip, 5, shape, seed) for seed in range(40)]
    assert {tuple(np.diff(frames)) for frames in shown} == {(2, 2, 2)}
    assert {frames[0] for frames in shown} == {0, 1, 2, 3}


def test_mirrored_ends_go_back_from_the_last_frame(tmp_path: Path) -> None:
    clip, shape = numbered(tmp_path), SampleShape(num_frames=4, crop=16, ends="mirror")
    assert frames_shown(clip, 8, shape) == [8, 9, 8, 7]
    assert frames_shown(clip, 9, replace(shape, interval=3)) == [9, 6, 3, 0]
    assert frames_shown(clip, 3, shape) == [3, 4, 5, 6]


def test_samples_are_reversed_at_random_and_nothing_else_changes(tmp_path: Path) -> None:
    clip, texture = numbered(tmp_path), store(tmp_path)[0]
    shape = SampleShape(num_frames=4, crop=16, random_reverse=True)
    shown = [frames_shown(clip, 2, shape, seed) for seed in range(40)]
    backwards = [frames == [5, 4, 3, 2] for frames in shown]
    assert all(
        back or frames == [2, 3, 4, 5] for back, frames in zip(backwards, shown, strict=True)
    )
    assert 10 < sum(backwards) < 30
    turned = list[bool]()
    for draw in (Draw(texture, 1, seed) for seed in range(12)):
        as_is, perhaps = (
            read_batch([draw], replace(shape, augment=True, random_reverse=reverse))[1]
            for reverse in (False, True)
        )
        turned.append(not torch.equal(perhaps, as_is))
        assert torch.equal(perhaps, as_is.flip(1) if turned[-1] else as_is)
    assert 0 < sum(turned) < 12


@pytest.mark.parametrize("random_reverse", [False, True])
def test_a_mirrored_sample_is_followed_by_itself_in_reverse(
    tmp_path: Path, random_reverse: bool
) -> None:
    clip = numbered(tmp_path)
    shape = SampleShape(num_frames=3, crop=16, mirror=True, random_reverse=random_reverse)
    for seed in range(4):
        frames = frames_shown(clip, 2, shape, seed)
        assert sorted(frames[:3]) == [2, 3, 4]
        assert frames == frames[::-1]


def test_requested_pages_hold_the_rows_and_little_else(tmp_path: Path) -> None:
    frames = np.random.default_rng(0).integers(0, 256, (4, 60, 50, 3), np.uint8)
    np.save(tmp_path / "f.npy", frames)
    stored = np.load(tmp_path / "f.npy", mmap_mode="r")
    content, rows = (tmp_path / "f.npy").read_bytes(), slice(37, 58)
    for frame, (begin, end) in zip([3, 1], pages_of(stored, [3, 1], rows), strict=True):
        wanted = frames[frame, rows].tobytes()
        assert content[begin:end].endswith(wanted)
        assert begin % mmap.PAGESIZE == 0
        assert end - begin < len(wanted) + mmap.PAGESIZE


def test_clips_are_unmapped_after_a_sample_is_read(tmp_path: Path) -> None:
    # Otherwise memory would grow with the data set.
    clips = store(tmp_path)
    kept = clips[0].gt()
    batch = read_batch([Draw(clip, 0, 0) for clip in clips], SHAPE)
    mapped = Path("/proc/self/maps").read_text()
    assert "c0_gt.npy" in mapped, "the test itself maps this file"
    assert not any(name in mapped for name in ("c0_lq.npy", "c1_gt.npy", "c1_lq.npy"))
    assert kept.shape == (5, 32, 40, 3)
    assert len(batch[0]) == 2


@pytest.mark.gpu
def test_a_gpu_gets_the_same_frames(tmp_path: Path) -> None:
    (draws,) = islice(passes(store(tmp_path), 0, 3), 1)
    plain, pinned = (read_batch(draws, SHAPE, pin=pin)[1] for pin in (False, True))
    assert pinned.is_pinned()
    on_gpu = to_float(pinned, torch.device("cuda"))
    assert torch.equal((on_gpu * 255).round().byte().cpu(), plain)
