"""VRT, the Video Restoration Transformer (Liang et al. 2024), for super-resolution.

This module holds settings, packaged sizes with their recipes, and size rules; the network itself is
in `network.py`.
"""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from fedvsr.models.spec import (
    MAX_SIZE,
    Checkpointing,
    FlowModelConfig,
    Layers,
    ModelSpec,
    Size,
    Start,
    Window,
    parts_around,
    require_buildable,
)

# Stages of the trunk: the first entries of `depths`.
NUM_STAGES = 7

# SpyNet halves the size five times.
_MIN_FLOW_SIZE = 32


# Settings of the published option files for REDS x4; the batch of the published federated training.
_RECIPE = {
    "batch_size": 1,
    "num_frames": 16,
    "crop": 256,
    "lr": 4e-4,
    "betas": (0.9, 0.99),
    "slow_params": ("spynet", "deform"),
    "slow_factor": 0.125,
    "freeze_steps": 20_000,
}
_SIZES = {
    "paper": Size(recipe={"local": _RECIPE}),
    "paper_6frames": Size(
        network={
            "img_size": (6, 64, 64),
            "window_size": (6, 8, 8),
            "pa_frames": 2,
            "deformable_groups": 12,
        },
        recipe={"local": {**_RECIPE, "num_frames": 6}},
    ),
    "released_16frames": Size(
        network={"pa_frames": 6, "deformable_groups": 24}, recipe={"local": _RECIPE}
    ),
    "demo": Size(
        network={
            "img_size": (4, 32, 32),
            "window_size": (4, 4, 4),
            "depths": (2,) * 9,
            "indep_reconsts": (8,),
            "embed_dims": (24,) * 7 + (32,) * 2,
            "num_heads": (4,) * 9,
            "pa_frames": 2,
            "deformable_groups": 4,
            "drop_path_rate": 0.0,
            "start": "edges",
        },
        recipe={
            "local": {
                "steps": 12,
                "batch_size": 1,
                "num_frames": 2,
                "crop": 128,
                "lr": 1e-3,
                "slow_params": ("spynet", "deform"),
                "slow_factor": 0.125,
            },
            "evaluation": {"crop": 256},
        },
    ),
}


class Config(FlowModelConfig):
    """Settings of the `vrt` network; the defaults are the federated paper's, for 16 frames."""

    sizes: ClassVar[dict[str, Size]] = _SIZES

    name: Literal["vrt"] = "vrt"
    size: Literal["paper", "paper_6frames", "released_16frames", "demo"] = Field(
        "paper",
        description="Packaged configuration that sets the other keys: the paper's, for 16 frames; "
        "the published one for 6 frames; that of the released checkpoint for 16; or a small one.",
    )
    upscale: Literal[1, 2, 4] = Field(
        4, description="Enlargement of height and width; 1 restores without enlarging."
    )
    img_size: Window = Field(
        (16, 64, 64),
        description="Frames, height and width of the training samples; recorded only, without "
        "effect.",
    )
    window_size: Window = Field(
        (8, 8, 8), description="Frames, rows and columns of a window of self attention."
    )
    depths: tuple[int, ...] = Field(
        (8, 8, 8, 8, 8, 8, 8, 4, 4, 4, 4, 4, 4),
        min_length=NUM_STAGES + 1,
        max_length=40,
        description="Attention blocks of each of the seven stages, then of each final group.",
    )
    indep_reconsts: tuple[int, ...] = Field(
        (11, 12),
        max_length=40,
        description="Final groups, as indices into `depths`, that see each frame alone.",
    )
    embed_dims: tuple[int, ...] = Field(
        (120, 120, 120, 120, 120, 120, 120, 180, 180, 180, 180, 180, 180),
        max_length=40,
        description="Channels for each entry of `depths`: one width for the stages, and one for "
        "the final groups.",
    )
    num_heads: tuple[int, ...] = Field(
        (6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6, 6),
        max_length=40,
        description="Attention heads for each entry of `depths`.",
    )
    pa_frames: Literal[2, 4, 6] = Field(
        4, description="Neighbours that parallel warping aligns to each frame, half on each side."
    )
    deformable_groups: int = Field(
        16, ge=1, le=64, description="Offset groups of the deformable convolutions."
    )
    mul_attn_ratio: float = Field(
        0.75, ge=0, le=1, description="Part of a stage's blocks with mutual attention."
    )
    mlp_ratio: float = Field(
        2.0, gt=0, le=8, description="Hidden channels over channels in the blocks' perceptrons."
    )
    drop_path_rate: float = Field(
        0.2, ge=0, lt=1, description="Rate of dropped residual branches at the last block."
    )
    start: Start = "published"
    checkpointing: Checkpointing = Field(
        "none",
        description="Values that the backward pass recomputes to save memory: none; large and "
        "cheap ones (attention, gated products, deformable sampling); or whole groups of blocks, "
        "the alignments and the enlargement.",
    )

    @field_validator("img_size", "window_size")
    @classmethod
    def _positive(cls, sizes: Window) -> Window:
        if min(sizes) < 1 or max(sizes) > MAX_SIZE:
            raise ValueError(f"sizes must be 1 to {MAX_SIZE}, got {sizes}")
        return sizes

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        count = len(self.depths)
        for key in ("embed_dims", "num_heads"):
            if len(getattr(self, key)) != count:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries and depths {count}: give as many"
                )
        if min(self.depths) < 1 or min(self.num_heads) < 1:
            raise ValueError("depths and num_heads must be at least 1")
        stages, finals = set(self.embed_dims[:NUM_STAGES]), set(self.embed_dims[NUM_STAGES:])
        if len(stages) > 1 or len(finals) > 1:
            raise ValueError(
                f"embed_dims must have one width for the first {NUM_STAGES} entries and one for "
                f"the rest, got {self.embed_dims}"
            )
        for channels, heads in zip(self.embed_dims, self.num_heads, strict=True):
            if channels < 4 or channels % 4 or channels % heads:
                raise ValueError(
                    f"embed_dims: {channels} must be a multiple of 4 and of its {heads} heads"
                )
        if wrong := [i for i in self.indep_reconsts if not NUM_STAGES <= i < count]:
            raise ValueError(
                f"indep_reconsts: {wrong[0]} is not a final group; those are {NUM_STAGES} to "
                f"{count - 1}"
            )
        reach = self.pa_frames // 2
        channels, groups = self.embed_dims[0], self.deformable_groups
        if channels % reach or groups % reach or (reach * channels) % groups:
            raise ValueError(
                f"deformable_groups = {groups} and embed_dims = {channels} must be multiples of "
                f"pa_frames / 2 = {reach}, and {reach * channels} a multiple of the groups"
            )
        layers = zip(self.depths, self.embed_dims, self.num_heads, strict=True)
        require_buildable(
            [Layers(n, dim, heads, self.window_size, self.mlp_ratio) for n, dim, heads in layers]
        )
        return self


def spec(config: Config) -> ModelSpec:
    """Size rules: a window must fit at 1/8 of the size, the trunk's smallest scale."""
    return ModelSpec(
        scale=config.upscale,
        charbonnier_eps=1e-9,
        min_frames=config.pa_frames // 2 + 1,
        min_size=max(8 * max(config.window_size[1:]), _MIN_FLOW_SIZE),
        size_multiple=8,
        features="conv_last" if config.upscale == 1 else "conv_before_upsample",
        parts=parts_around(
            r"(?:conv_before_upsample|upsample|conv_last)\.",
            r"conv_last\.",
            flow=r"^spynet\.",
            norm=r"(?:^|\.)norm\d?\.|\.reshape\.1\.|^stage8\.0\.1\.",
            attention=r"\.attn\.",
        ),
    )
