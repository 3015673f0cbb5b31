"""A small recurrent residual network for demonstrations and tests; it trains on a CPU in a minute.

This module holds its settings and size rules; the network itself is in `network.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from fedvsr.models.spec import ModelConfig, ModelSpec, Size, parts_around

_SIZES = {
    "demo": Size(
        recipe={"local": {"steps": 20, "batch_size": 4, "num_frames": 5, "crop": 96, "lr": 2e-3}}
    )
}


class Config(ModelConfig):
    """Settings of the `tiny` network."""

    sizes: ClassVar[dict[str, Size]] = _SIZES

    name: Literal["tiny"] = "tiny"
    size: Literal["demo"] = Field("demo", description="Packaged configuration; there is one.")
    scale: int = Field(4, ge=1, le=8, description="Enlargement of height and width; 1 restores.")
    channels: int = Field(16, ge=4, le=128, description="Feature channels.")
    blocks: int = Field(2, ge=0, le=20, description="Residual blocks per direction.")


def spec(config: Config) -> ModelSpec:
    """Size rules: any number of frames and any size."""
    return ModelSpec(
        scale=config.scale,
        charbonnier_eps=1e-9,
        features="to_pixels",
        parts=parts_around(r"to_pixels\.", r"to_pixels\."),
    )
