"""Run the steps of a degradation over a clip's frames.

Frames are float32 (3, H, W) in [0, 1], one at a time, so that memory does not grow with a clip's
length. Values may leave [0, 1] until a step quantises them, or the end does.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from itertools import chain
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from fedvsr.data.clips import Frames
from fedvsr.data.colour import Colour
from fedvsr.data.degrade import gaussian_downscale, quantise
from fedvsr.data.degrade_config import Pipeline
from fedvsr.errors import UserError
from fedvsr.resize import downscale_planes
from fedvsr.seeding import generator

Values = Mapping[str, Any]
# x265 writes past the end of its memory with narrower frames.
_X265_WIDTH = 64
# Standard deviations of a blur after which its kernel ends.
_REACH = 3


def draw(steps: Pipeline, seed: int, clip_id: str) -> list[dict[str, Any]]:
    """The settings of each step for one clip; equal seeds and clips give equal values."""
    return [step.drawn(seed, clip_id, place) for place, step in enumerate(steps)]


def run_steps(
    gt: Iterable[Frames], drawn: Iterable[Values], scale: int, seed: int, clip_id: str
) -> Generator[Frames, None, None]:
    """Degrade a clip's frames, uint8 RGB (H, W, 3), by steps in their order.

    Args:
        gt: ground truth; H and W are multiples of `scale`.
        drawn: what `draw` gives.
        scale: factor by which `downscale` reduces.
        seed: the root seed of the noise.
        clip_id: the clip, which the noise depends on.

    Raises:
        UserError: a codec cannot take frames of this size.
    """
    frames = iter(gt)
    first = next(frames, None)
    if first is None:
        return
    size = first.shape[0] // scale, first.shape[1] // scale
    planes: Iterator[Tensor] = (_to_planes(rgb) for rgb in chain([first], frames))
    for place, values in enumerate(drawn):
        rng = generator(seed, "degradation", clip_id, place, "noise")
        planes = _STEPS[values["step"]](planes, values, rng, size)
    for frame in planes:
        yield quantise(frame.permute(1, 2, 0).contiguous().numpy())


def _blur(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    if values["sigma_y"] is None:
        taps = _taps(values["sigma"]).tolist()
        for frame in planes:
            yield _along(_along(frame, taps, 1), taps, 2)
        return
    kernel = gaussian_kernel(values["sigma"], values["sigma_y"], values["angle"])
    reach = len(kernel) // 2
    for frame in planes:
        padded = F.pad(frame[None], (reach,) * 4, mode="replicate")
        yield F.conv2d(padded, kernel.expand(3, 1, -1, -1), groups=3)[0]


def _along(frame: Tensor, taps: Sequence[float], axis: int) -> Tensor:
    """Convolve one axis of a frame: a sum of moved frames takes a tenth of `conv2d`'s time."""
    reach, length = len(taps) // 2, frame.shape[axis]
    sides = (0, 0, reach, reach) if axis == 1 else (reach, reach)
    padded = F.pad(frame, sides, mode="replicate")
    blurred = padded.narrow(axis, 0, length) * taps[0]
    for start, weight in enumerate(taps[1:], 1):
        blurred.add_(padded.narrow(axis, start, length), alpha=weight)
    return blurred


def _taps(sigma: float) -> Tensor:
    offsets = torch.arange(-math.ceil(_REACH * sigma), math.ceil(_REACH * sigma) + 1.0)
    taps = torch.exp(offsets.square() / (-2 * sigma**2))
    return taps / taps.sum()


def gaussian_kernel(sigma_x: float, sigma_y: float, degrees: float) -> Tensor:
    """A Gaussian of two widths, turned from the rows' direction towards the columns': (N, N)."""
    reach = math.ceil(_REACH * max(sigma_x, sigma_y))
    y, x = torch.meshgrid(*[torch.arange(-reach, reach + 1.0)] * 2, indexing="ij")
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    along, across = x * cos + y * sin, y * cos - x * sin
    kernel = torch.exp(-0.5 * ((along / sigma_x).square() + (across / sigma_y).square()))
    return kernel / kernel.sum()


def _downscale(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    kernel = values["kernel"]
    for frame in planes:
        yield resized(frame, size, kernel)


def _resize(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    for frame in planes:
        height, width = (max(1, round(n * values["factor"])) for n in frame.shape[1:])
        yield resized(frame, (height, width), values["kernel"])


def resized(frame: Tensor, size: tuple[int, int], kernel: str) -> Tensor:
    """Resize a frame; `bicubic` by a whole factor is MATLAB's, as in `fedvsr.data.degrade`."""
    before = tuple(frame.shape[1:])
    if before == size:
        return frame
    factors = {a / b for a, b in zip(before, size, strict=True)}
    whole = factors.pop() if len(factors) == 1 else 0.0
    if kernel == "bd":
        if whole not in (2, 3, 4, 8):
            raise UserError(
                f"the kernel bd cannot take frames from {before[1]} x {before[0]} to {size[1]} x "
                f"{size[0]} (data.degradation); choose bicubic, area or bilinear"
            )
        rgb = gaussian_downscale(frame.permute(1, 2, 0).numpy(), int(whole))
        return torch.from_numpy(np.ascontiguousarray(rgb)).permute(2, 0, 1)
    if kernel == "bicubic" and whole > 1 and whole.is_integer():
        return downscale_planes(frame[None], int(whole))[0]
    if kernel == "nearest":
        return F.interpolate(frame[None], size, mode="nearest-exact")[0]
    if kernel == "area":
        return F.interpolate(frame[None], size, mode="area")[0]
    return F.interpolate(frame[None], size, mode=kernel, align_corners=False, antialias=True)[0]


def _gaussian_noise(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    for frame in planes:
        noise = rng.standard_normal(tuple(frame.shape), np.float32)
        yield frame + torch.from_numpy(noise).mul_(values["sigma"] / 255)


def _poisson_noise(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    photons = values["photons"]
    for frame in planes:
        counts = rng.poisson(frame.clamp(0, 1).numpy().astype(np.float64) * photons)
        yield torch.from_numpy((counts / photons).astype(np.float32))


def _jpeg(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    for frame in planes:
        file = io.BytesIO()
        rgb = quantise(frame.permute(1, 2, 0).numpy())
        Image.fromarray(rgb).save(file, "jpeg", quality=values["quality"])
        with Image.open(file) as picture:
            yield _to_planes(np.array(picture.convert("RGB")))


def _codec(
    planes: Iterator[Tensor], values: Values, rng: np.random.Generator, size: tuple[int, int]
) -> Iterator[Tensor]:
    """Encode and decode as frames come, so that only those that the encoder holds are in memory."""
    name, colour = values["step"], Colour()
    encoder: av.VideoCodecContext | None = None
    decoder = av.VideoCodecContext.create("h264" if name == "h264" else "hevc", "r")
    # Threads split a frame otherwise, and other bits come out.
    decoder.thread_count = 1
    try:
        for number, planes_CHW in enumerate(planes):
            rgb = quantise(planes_CHW.permute(1, 2, 0).numpy())
            frame = colour.from_rgb(rgb)
            frame.pts = number
            if encoder is None:
                encoder = _encoder(name, values["qp"], frame)
            for packet in encoder.encode(frame):
                yield from (_decoded(colour, one) for one in decoder.decode(packet))
        for packet in encoder.encode(None) if encoder is not None else ():
            yield from (_decoded(colour, one) for one in decoder.decode(packet))
        yield from (_decoded(colour, one) for one in decoder.decode(None))
    except av.FFmpegError as error:
        raise UserError(f"cannot compress frames by {name} (data.degradation): {error}") from None


def _encoder(name: str, qp: int, frame: av.VideoFrame) -> av.VideoCodecContext:
    if name == "h265" and frame.width < _X265_WIDTH:
        raise UserError(
            f"h265 (data.degradation) cannot compress frames of {frame.width} pixels, which is "
            f"fewer than {_X265_WIDTH}; take h264 or larger frames"
        )
    try:
        encoder = av.VideoCodecContext.create("libx264" if name == "h264" else "libx265", "w")
    except ValueError:
        raise UserError(
            f"this PyAV has no encoder for {name} (data.degradation); take jpeg, or install PyAV "
            "from its wheels"
        ) from None
    encoder.width, encoder.height, encoder.pix_fmt = frame.width, frame.height, frame.format.name
    encoder.time_base = Fraction(1, 25)
    encoder.framerate = Fraction(25)
    encoder.thread_count = 1
    options = {"preset": "medium"}
    if name == "h264":
        options["qp"] = str(qp)
    else:
        options["x265-params"] = f"qp={qp}:log-level=error:pools=none:frame-threads=1"
    encoder.options = options
    return encoder


def _decoded(colour: Colour, frame: av.VideoFrame) -> Tensor:
    return _to_planes(np.asarray(colour.to_rgb(frame), np.uint8))


def _to_planes(rgb: Frames) -> Tensor:
    return torch.from_numpy(rgb.astype(np.float32) / 255).permute(2, 0, 1).contiguous()


_Step = Callable[[Iterator[Tensor], Values, np.random.Generator, tuple[int, int]], Iterator[Tensor]]
_STEPS: dict[str, _Step] = {
    "blur": _blur,
    "downscale": _downscale,
    "resize": _resize,
    "gaussian_noise": _gaussian_noise,
    "poisson_noise": _poisson_noise,
    "jpeg": _jpeg,
    "h264": _codec,
    "h265": _codec,
}
