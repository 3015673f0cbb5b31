"""Shared material: short real videos, encoded here, and an experiment that runs in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import yaml

from fedvsr.environment import let_threads_sleep

let_threads_sleep()

from fedvsr.config import ExperimentConfig, load_config  # noqa: E402 (after the line above)
from fedvsr.data.clips import Frames  # noqa: E402
from fedvsr.data.degrade import bicubic_upscale  # noqa: E402


def moving_texture(num_frames: int, height: int, width: int, seed: int = 0) -> Frames:
    """Soft-edged blobs that drift: frames with something to sharpen, and neighbours alike."""
    rng = np.random.default_rng(seed)
    size = height + num_frames, width + num_frames
    coarse = rng.random((-(-size[0] // 8), -(-size[1] // 8), 3))
    blobs = 1 / (1 + np.exp(-10 * (bicubic_upscale(coarse, 8) - 0.5)))
    frames = [blobs[t : t + height, t : t + width] for t in range(num_frames)]
    return (np.stack(frames) * 255).astype(np.uint8)


def write_video(path: Path, frames: Frames) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        stream.bit_rate = 4_000_000
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.fixture(scope="session")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("videos") / "texture.mp4"
    write_video(path, moving_texture(num_frames=40, height=48, width=64))
    return path


@pytest.fixture(scope="session")
def small_yaml(video: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole experiment, seconds long: 4 clients, 2 a round, 3 rounds."""
    folder = tmp_path_factory.mktemp("small")
    settings: dict[str, Any] = {
        "name": "small",
        "seed": 3,
        "data": {
            "videos": [str(video)],
            "clip_frames": 4,
            "num_clients": 4,
            "cache_dir": str(folder / "cache"),
        },
        "model": {"name": "tiny", "channels": 4, "blocks": 1},
        "algorithm": {"name": "fedvsr"},
        "federation": {"num_rounds": 3, "clients_per_round": 2},
        "local": {"steps": 3, "batch_size": 2, "num_frames": 3, "crop": 32, "lr": 2e-3},
        "evaluation": {"num_threads": 1},
    }
    path = folder / "small.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.fixture
def small(small_yaml: Path) -> ExperimentConfig:
    return load_config(str(small_yaml))
