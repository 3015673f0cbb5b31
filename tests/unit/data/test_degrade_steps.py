import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
import torchvision.transforms.v2.functional as TF
from PIL import Image

from fedvsr.data.clips import Frames
from fedvsr.data.degrade import Kind, degrade
from fedvsr.data.degrade_config import READY, pipelines
from fedvsr.data.degrade_steps import draw, gaussian_kernel, resized, run_steps
from fedvsr.errors import UserError
from tests.conftest import moving_texture

GT = moving_texture(3, 96, 128).astype(np.uint8)


def run(steps: Any, gt: Frames = GT, scale: int = 4, seed: int = 0, clip_id: str = "a") -> Frames:
    (pipeline,) = pipelines(steps).values()
    return np.stack([*run_steps(gt, draw(pipeline, seed, clip_id), scale, seed, clip_id)])


@pytest.mark.parametrize("name", ["bi", "bd"])
@pytest.mark.parametrize("scale", [2, 3, 4])
def test_the_frames_of_papers_are_the_bits_of_degrade(name: Kind, scale: int) -> None:
    gt = GT[:, :96, :120]
    np.testing.assert_array_equal(run(name, gt, scale), degrade(gt, name, scale))


@pytest.mark.parametrize("name", READY)
def test_equal_seeds_give_equal_bits_on_any_number_of_threads(name: str) -> None:
    first = run(name)
    assert first.shape == (3, 24, 32, 3)
    with ThreadPoolExecutor(3) as pool:
        for other in pool.map(lambda _: run(name), range(3)):
            np.testing.assert_array_equal(other, first)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1 if threads > 1 else 2)
        np.testing.assert_array_equal(run(name), first)
    finally:
        torch.set_num_threads(threads)
    if name not in ("bi", "bd"):
        assert (run(name, seed=1) != first).any()
        assert (run(name, clip_id="b") != first).any()


def test_a_step_more_changes_no_draw_of_the_steps_before_it() -> None:
    steps = [{"step": "blur", "sigma": [0.5, 3]}, {"step": "downscale"}]
    more = [*steps, {"step": "jpeg", "quality": [30, 90]}]
    short, long = (draw(pipelines(s)["steps"], 7, "a") for s in (steps, more))
    assert long[:2] == short
    assert 0.5 <= long[0]["sigma"] <= 3
    assert 30 <= long[2]["quality"] <= 90
    clips = [draw(pipelines(more)["steps"], 7, str(i))[2]["quality"] for i in range(300)]
    # Both ends are drawn; the mean of 30 to 90 is 60, and of 300 draws within 4 standard errors.
    assert min(clips) <= 32
    assert max(clips) >= 88
    assert abs(np.mean(clips) - 60) < 4 * (61 / 12**0.5) / 300**0.5


def test_isotropic_blur_is_that_of_torchvision() -> None:
    blurred = run([{"step": "blur", "sigma": 1.5}], scale=1)
    planes = torch.from_numpy(GT).permute(0, 3, 1, 2).float() / 255
    # 3 standard deviations are 4.5, so the kernel has 5 taps on either side.
    wanted = TF.gaussian_blur(planes, [11, 11], [1.5, 1.5]).permute(0, 2, 3, 1).numpy() * 255
    # torchvision mirrors edges, where this repeats pixels.
    inside = (slice(None), slice(5, -5), slice(5, -5))
    np.testing.assert_allclose(blurred[inside], wanted[inside], atol=0.51)


def test_the_kernel_of_two_widths() -> None:
    kernel = gaussian_kernel(3.0, 0.5, 0.0)
    assert kernel.shape == (19, 19)
    assert kernel.sum() == pytest.approx(1)
    # One step along the rows' direction (the last axis) is 1/3 of a deviation, across it is 2.
    assert kernel[9, 10] / kernel[9, 9] == pytest.approx(np.exp(-0.5 / 9))
    assert kernel[10, 9] / kernel[9, 9] == pytest.approx(np.exp(-2))
    torch.testing.assert_close(gaussian_kernel(3.0, 0.5, 90.0), kernel.T)
    same = run([{"step": "blur", "sigma": 1.2}], scale=1).astype(int)
    turned = run([{"step": "blur", "sigma": 1.2, "sigma_y": 1.2, "angle": 30}], scale=1)
    assert abs(same - turned).max() <= 1


def test_kernels_that_reduce() -> None:
    frame = torch.arange(16.0).view(1, 4, 4)
    # Means of blocks of 2 x 2 of rows 0 1 2 3, 4 5 6 7, ...
    area = torch.tensor([[2.5, 4.5], [10.5, 12.5]])
    torch.testing.assert_close(resized(frame, (2, 2), "area")[0], area)
    # From blocks of 2, nearest takes the lower right pixel; its centre is as near as the others'.
    assert resized(frame, (2, 2), "nearest")[0].tolist() == [[5, 7], [13, 15]]
    plain = torch.full((3, 12, 8), 0.3)
    for kernel in ("bicubic", "bilinear", "area", "nearest", "bd"):
        torch.testing.assert_close(resized(plain, (6, 4), kernel), torch.full((3, 6, 4), 0.3))
    # A triangle of two output pixels' width: weights 1 3 3 1 of the pixels around the middle.
    line = torch.zeros(1, 1, 8)
    line[..., 3] = 8.0
    assert resized(line, (1, 4), "bilinear")[0, 0].tolist() == pytest.approx([0, 3, 1, 0])
    assert resized(plain, (5, 7), "bicubic").shape == (3, 5, 7)


def test_gaussian_noise_has_its_deviation_in_every_frame() -> None:
    grey = np.full((2, 200, 200, 3), 128, np.uint8)
    noisy = run([{"step": "gaussian_noise", "sigma": 10}], grey, scale=1).astype(float)
    # 120 000 samples a frame; rounding adds a variance of 1/12.
    for frame in noisy:
        assert frame.mean() == pytest.approx(128, abs=4 * 10 / 120_000**0.5)
        assert frame.std() == pytest.approx((100 + 1 / 12) ** 0.5, rel=0.01)
    assert (noisy[0] != noisy[1]).mean() > 0.9


def test_poisson_noise_has_the_variance_of_its_counts() -> None:
    grey = np.full((1, 200, 200, 3), 51, np.uint8)
    noisy = run([{"step": "poisson_noise", "photons": 1000}], grey, scale=1).astype(float)
    # 51 of 255 is 0.2, so 200 photons: a deviation of sqrt(200) of 1000, or 3.606 levels, and
    # rounding to levels.
    assert noisy.mean() == pytest.approx(51, abs=0.1)
    assert noisy.std() == pytest.approx((3.606**2 + 1 / 12) ** 0.5, rel=0.01)


def test_jpeg_is_that_of_pillow() -> None:
    files = [io.BytesIO() for _ in GT]
    for rgb, file in zip(GT, files, strict=True):
        Image.fromarray(rgb).save(file, "jpeg", quality=40)
    wanted = np.stack([np.array(Image.open(file)) for file in files])
    np.testing.assert_array_equal(run([{"step": "jpeg", "quality": 40}], scale=1), wanted)


@pytest.mark.parametrize("codec", ["h264", "h265"])
def test_codecs_keep_the_order_of_frames_and_lose_more_at_a_higher_quantiser(codec: str) -> None:
    gt = (moving_texture(20, 64, 96) * 0.5 + 60).astype(np.uint8)
    errors = [
        np.abs(run([{"step": codec, "qp": qp}], gt, scale=1).astype(int) - gt).mean((1, 2, 3))
        for qp in (10, 30, 45)
    ]
    assert all(len(own) == 20 for own in errors)
    # A frame in another's place differs by as much as neighbours do.
    neighbours = np.abs(np.diff(gt.astype(int), axis=0)).mean()
    assert errors[0].max() < neighbours / 3
    assert errors[0].mean() < errors[1].mean() < errors[2].mean()


def test_a_codec_takes_odd_sizes() -> None:
    odd = GT[:, :33, :65]
    assert run([{"step": "h264", "qp": 20}], odd, scale=1).shape == odd.shape


def test_steps_run_in_their_order() -> None:
    noise, blur = {"step": "gaussian_noise", "sigma": 20}, {"step": "blur", "sigma": 2}
    grey = np.full((1, 64, 64, 3), 128, np.uint8)
    smooth = run([noise, blur], grey, scale=1).std()
    # A blur of sigma 2 leaves 1 / (2 sqrt(pi) 2) of white noise's deviation.
    assert smooth == pytest.approx(20 / (4 * np.pi**0.5), rel=0.2)
    assert run([blur, noise], grey, scale=1).std() == pytest.approx(20, rel=0.05)


def test_a_chain_repeats_steps() -> None:
    twice = [{"step": "blur", "sigma": 1.5}, {"step": "blur", "sigma": 2}]
    # Variances add up: 1.5^2 + 2^2 = 2.5^2.
    difference = run(twice, scale=1).astype(int) - run([{"step": "blur", "sigma": 2.5}], scale=1)
    assert abs(difference[:, 14:-14, 14:-14]).max() <= 1


@pytest.mark.parametrize(
    ("steps", "width", "message"),
    [
        ([{"step": "h265", "qp": 30}], 32, "h265 .* frames of 32 pixels, .* fewer than 64"),
        ([{"step": "resize", "factor": 0.7}, {"step": "downscale", "kernel": "bd"}], 64, "bd"),
    ],
)
def test_frames_that_a_step_cannot_take(steps: Sequence[Any], width: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        run([*steps], GT[:, :, :width], scale=2 if len(steps) > 1 else 1)
