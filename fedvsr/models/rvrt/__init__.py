"""RVRT, the recurrent video restoration transformer with guided deformable attention.

Liang et al., "Recurrent Video Restoration Transformer with Guided Deformable Attention", NeurIPS
2022; only its enlargement of bicubically reduced video by four. This module holds settings,
packaged sizes with their recipes, and size rules; the network itself is in `network.py`.
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

Three = tuple[int, int, int]
# Frames in a step of the recurrence.
CLIP = 2


_SIZES = {
    "paper": Size(
        # The published option file for REDS x4; the batch of the published federated training.
        recipe={
            "local": {
                "batch_size": 1,
                "num_frames": 30,
                "crop": 256,
                "lr": 4e-4,
                "betas": (0.9, 0.99),
                "slow_params": ("spynet",),
                "slow_factor": 0.25,
                "freeze_steps": 30_000,
            }
        }
    ),
    "demo": Size(
        network={
            "img_size": (2, 32, 32),
            "window_size": (2, 4, 4),
            "num_blocks": (1, 1, 1),
            "embed_dims": (24, 24, 24),
            "num_heads": (4, 4, 4),
            "deformable_groups": 4,
            "attention_heads": 4,
            "start": "edges",
        },
        recipe={
            "local": {
                "steps": 12,
                "batch_size": 1,
                "num_frames": 4,
                "crop": 128,
                "lr": 1e-3,
                "slow_params": ("spynet",),
                "slow_factor": 0.25,
            },
            "evaluation": {"crop": 256},
        },
    ),
}


class Config(FlowModelConfig):
    """Settings of the `rvrt` network; the defaults are the paper's for x4 super-resolution."""

    sizes: ClassVar[dict[str, Size]] = _SIZES

    name: Literal["rvrt"] = "rvrt"
    size: Literal["paper", "demo"] = Field(
        "paper",
        description="Packaged configuration that sets the other keys: the paper's, or a small one.",
    )
    upscale: Literal[4] = Field(4, description="Enlargement of height and width.")
    clip_size: Literal[2] = Field(2, description="Frames per step of the recurrence.")
    img_size: Three = Field(
        (2, 64, 64),
        description="Training size (frames, height, width); recorded only, without effect.",
    )
    window_size: Three = Field(
        (2, 8, 8),
        description="Attention windows of the branches (frames, height, width); windows before and "
        "after the branches span one frame.",
    )
    num_blocks: Three = Field(
        (1, 2, 1), description="Transformer blocks before, in each of, and after the branches."
    )
    depths: Three = Field(
        (2, 2, 2), description="Attention layers per block in these three places."
    )
    embed_dims: Three = Field(
        (144, 144, 144), description="Channels in these three places; all equal."
    )
    num_heads: Three = Field((6, 6, 6), description="Attention heads in these three places.")
    mlp_ratio: float = Field(
        2.0, gt=0, le=8, description="Hidden channels over channels in a perceptron."
    )
    inputconv_groups: tuple[Literal[1], ...] = Field(
        (1, 1, 1, 1, 1, 1),
        max_length=6,
        description="Groups of the six input convolutions; only 1 is supported.",
    )
    max_residue_magnitude: float = Field(
        10.0, gt=0, le=1e4, description="Largest offset added to the flow, in pixels."
    )
    deformable_groups: int = Field(
        12,
        ge=2,
        le=1024,
        multiple_of=2,
        description="Groups with separate offsets: half for keys, half for values.",
    )
    attention_heads: int = Field(
        12, ge=1, le=1024, description="Heads of the deformable attention."
    )
    attention_window: tuple[Literal[3], Literal[3]] = Field(
        (3, 3), description="Positions sampled around each flow target (height, width)."
    )
    cpu_cache_length: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="Frames above which inference keeps features in host memory.",
    )
    start: Start = "published"
    checkpointing: Checkpointing = Field(
        "none",
        description="Values that the backward pass recomputes to save memory: none, attention, or "
        "whole blocks.",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        dim = self.embed_dims[0]
        if min(*self.num_blocks, *self.depths, *self.num_heads, *self.img_size, dim) < 1:
            raise ValueError(
                "num_blocks, depths, embed_dims, num_heads and img_size are at least 1"
            )
        if max(self.img_size) > MAX_SIZE:
            raise ValueError(f"img_size = {self.img_size} must be at most {MAX_SIZE}")
        if len(set(self.embed_dims)) > 1:
            raise ValueError(f"embed_dims must be equal, not {self.embed_dims}")
        if any(dim % heads for heads in self.num_heads):
            raise ValueError(
                f"embed_dims = {dim} must be a multiple of each of num_heads {self.num_heads}"
            )
        if (2 * dim) % self.attention_heads or (4 * dim) % self.deformable_groups:
            raise ValueError(
                f"attention_heads = {self.attention_heads} must divide {2 * dim} and "
                f"deformable_groups = {self.deformable_groups} must divide {4 * dim} channels"
            )
        if self.window_size[0] not in (1, CLIP) or not all(
            2 <= side <= 32 for side in self.window_size[1:]
        ):
            raise ValueError(
                f"window_size = {self.window_size} must have 1 or 2 frames, and sides of 2 to 32 "
                "pixels"
            )
        # Four branches have the second entry's layers.
        layers = zip((1, 4, 1), self.num_blocks, self.depths, self.num_heads, strict=True)
        require_buildable(
            [
                Layers(times * blocks * depth, dim, heads, self.window_size, self.mlp_ratio)
                for times, blocks, depth, heads in layers
            ]
        )
        return self


def spec(config: Config) -> ModelSpec:
    """Size rules: pairs of frames, and 32 pixels a side: SpyNet halves the size five times."""
    return ModelSpec(
        scale=config.upscale,
        charbonnier_eps=1e-9,
        min_frames=CLIP,
        frames_multiple=CLIP,
        min_size=32,
        features="conv_before_upsampler",
        parts=parts_around(
            r"(?:conv_before_upsampler|upsampler|conv_last)\.",
            r"conv_last\.",
            flow=r"^spynet\.",
            norm=r"\.norm\d?\.|\.main\.[37]\.(?:weight|bias)$",
            attention=r"\.attn\.|^deform_align\.",
        ),
    )
