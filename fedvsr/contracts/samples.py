"""Samples for the contracts: clips of a drifting texture, and settings for seconds of training."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np

from fedvsr.data.clips import Clip, Frames
from fedvsr.data.config import DataConfig
from fedvsr.data.degrade import bicubic_upscale
from fedvsr.data.split import prepare


def moving_texture(num_frames: int, height: int, width: int, seed: int = 0) -> Frames:
    """Soft-edged blobs that drift: frames with something to sharpen, and neighbours alike."""
    rng = np.random.default_rng(seed)
    size = height + num_frames, width + num_frames
    coarse = rng.random((-(-size[0] // 8), -(-size[1] // 8), 3))
    blobs = 1 / (1 + np.exp(-10 * (bicubic_upscale(coarse, 8) - 0.5)))
    frames = [blobs[t : t + height, t : t + width] for t in range(num_frames)]
    return (np.stack(frames) * 255).astype(np.uint8)


def write_video(path: Path, frames: Frames) -> None:
    """Write frames as a lossy video of 25 frames per second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def clips(folder: Path, num_clips: int, clip_frames: int, height: int, width: int) -> list[Clip]:
    """Clips to train on, cut at the first call for a folder."""
    name = f"{num_clips}x{clip_frames}x{height}x{width}.mp4"
    if not (folder / name).exists():
        # One more clip, which the split holds out for scores.
        frames = moving_texture((num_clips + 1) * clip_frames, height, width)
        write_video(folder / name, frames)
    data = DataConfig(
        videos=(str(folder / name),),
        clip_frames=clip_frames,
        num_clients=1,
        cache_dir=str(folder),
    )
    return list(prepare(data, 0, lambda *_: None).train)
