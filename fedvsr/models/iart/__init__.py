"""IART, video restoration with implicit resampling-based alignment.

Xu et al., "Enhancing Video Super-Resolution via Implicit Resampling-based Alignment", CVPR 2024;
enlargement by four. This module holds settings, packaged sizes with their recipes, and size rules;
the network itself is in `network.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from typing_extensions import Self

from fedvsr.models.spec import (
    MAX_SIZE,
    Checkpointing,
    FlowModelConfig,
    Layers,
    ModelSpec,
    Size,
    Start,
    parts_around,
    require_buildable,
)

_SIZES = {
    "paper": Size(
        # The published option file for REDS x4; the batch of the published federated training.
        recipe={
            "local": {
                "batch_size": 3,
                "num_frames": 16,
                "crop": 256,
                "lr": 2e-4,
                "betas": (0.9, 0.99),
                "slow_params": ("spynet",),
                "slow_factor": 0.125,
                "freeze_steps": 5_000,
                "precision": "fp16",
            }
        }
    ),
    "demo": Size(
        network={
            "mid_channels": 32,
            "embed_dim": 24,
            "depths": (2,),
            "num_heads": (4,),
            "window_size": (3, 4, 4),
            "img_size": 32,
            "drop_path_rate": 0.0,
            "checkpointing": "none",
            "start": "edges",
        },
        recipe={
            "local": {
                "steps": 12,
                "batch_size": 1,
                "num_frames": 2,
                "crop": 128,
                "lr": 1e-3,
                "slow_params": ("spynet",),
                "slow_factor": 0.125,
            },
            "evaluation": {"crop": 256},
        },
    ),
}


class Config(FlowModelConfig):
    """Settings of the `iart` network; the defaults are the paper's for x4 super-resolution."""

    sizes: ClassVar[dict[str, Size]] = _SIZES

    name: Literal["iart"] = "iart"
    size: Literal["paper", "demo"] = Field(
        "paper",
        description="Packaged configuration that sets the other keys: the paper's, or a small one.",
    )
    in_channels: Literal[3] = Field(3, description="Colour channels.")
    mid_channels: int = Field(64, ge=4, le=512, description="Channels before the enlargement.")
    embed_dim: int = Field(120, ge=4, le=1024, multiple_of=4, description="Feature channels.")
    depths: tuple[int, ...] = Field(
        (6, 6, 6),
        min_length=1,
        max_length=64,
        description="Attention layers in each block of a step's network.",
    )
    num_heads: tuple[int, ...] = Field(
        (6, 6, 6),
        max_length=64,
        description="Attention heads of each block; the first is also the alignment's.",
    )
    window_size: tuple[Literal[3], int, int] = Field(
        (3, 8, 8), description="Attention windows (frames, height, width)."
    )
    num_frames: Literal[3] = Field(3, description="Frames that a step's network merges.")
    img_size: int = Field(
        64, ge=1, le=MAX_SIZE, description="Training size in pixels; recorded only, without effect."
    )
    patch_size: Literal[1] = Field(1, description="Side of a token in pixels.")
    drop_path_rate: float = Field(
        0.1, ge=0, lt=1, description="Probability to skip the last layer's branches in training."
    )
    cpu_cache_length: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="Frames above which inference keeps features in host memory.",
    )
    is_low_res_input: Literal[True] = Field(
        True, description="Whether the input is low-resolution; it must be."
    )
    start: Start = "published"
    checkpointing: Checkpointing = Field(
        "blocks",
        description="Values that the backward pass recomputes to save memory: none, attention, or "
        "whole blocks.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.num_heads) != len(self.depths) or min(self.depths) < 1:
            raise ValueError(
                f"depths = {self.depths} must be positive, with as many entries as num_heads "
                f"{self.num_heads}"
            )
        if any(heads < 1 or self.embed_dim % heads for heads in self.num_heads):
            raise ValueError(
                f"embed_dim = {self.embed_dim} must be a multiple of each entry of num_heads "
                f"{self.num_heads}"
            )
        if not all(2 <= side <= 64 for side in self.window_size[1:]):
            raise ValueError(f"window_size = {self.window_size} must have sides of 2 to 64 pixels")
        # The published MLPs have a ratio of 2.
        blocks = zip(self.depths, self.num_heads, strict=True)
        require_buildable(
            [Layers(n, self.embed_dim, heads, self.window_size, 2) for n, heads in blocks]
        )
        return self


def spec(config: Config) -> ModelSpec:
    """Size rules: any number of frames, and 32 pixels a side: SpyNet halves the size five times."""
    return ModelSpec(
        scale=4,
        charbonnier_eps=1e-12,
        min_size=32,
        features="conv_before_upsample",
        parts=parts_around(
            r"(?:conv_before_upsample|upconv\d|conv_hr|conv_last)\.",
            r"conv_last\.",
            flow=r"^spynet\.",
            norm=r"\.norm\d?\.",
            attention=r"\.attn\.|^implicit_warp\.",
        ),
    )
