"""BasicVSR++: second-order grid propagation with flow-guided deformable alignment.

Chan et al., "BasicVSR++: Improving Video Super-Resolution with Enhanced Propagation and Alignment",
CVPR 2022; enlargement by four. This module holds settings, packaged sizes with their recipes, and
size rules; the network itself is in `network.py`.
"""

from __future__ import annotations

import re
from typing import ClassVar, Literal

from pydantic import Field

from fedvsr.models.spec import (
    Checkpointing,
    FlowModelConfig,
    ModelSpec,
    Size,
    Start,
    flow_name,
    parts_around,
)

# Groups of channels that the alignment displaces together; half of them read each of two states.
GROUPS = 16
# BasicSR's name of the two enlarging convolutions.
_BASICSR = re.compile(r"^upconv([12])\.")

_SIZES = {
    "paper": Size(
        # The authors' published training configuration for REDS x4; the batch of its eight GPUs.
        recipe={
            "local": {
                "batch_size": 8,
                "num_frames": 30,
                "crop": 256,
                "lr": 1e-4,
                "betas": (0.9, 0.99),
                "slow_params": ("spynet",),
                "slow_factor": 0.25,
                "freeze_steps": 5_000,
            }
        }
    ),
    "demo": Size(
        network={
            "mid_channels": 16,
            "num_blocks": 2,
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
                "slow_factor": 0.25,
            },
            "evaluation": {"crop": 256},
        },
    ),
}


class Config(FlowModelConfig):
    """Settings of the `basicvsrpp` network; the defaults are the paper's for x4."""

    sizes: ClassVar[dict[str, Size]] = _SIZES

    name: Literal["basicvsrpp"] = "basicvsrpp"
    size: Literal["paper", "demo"] = Field(
        "paper",
        description="Packaged configuration that sets the other keys: the paper's, or a small one.",
    )
    mid_channels: int = Field(
        64, ge=8, le=512, multiple_of=GROUPS // 2, description="Feature channels."
    )
    num_blocks: int = Field(
        7, ge=0, le=64, description="Residual blocks of a step in each of the four branches."
    )
    max_residue_magnitude: float = Field(
        10.0, gt=0, le=1e4, description="Largest offset added to the flow, in pixels."
    )
    is_low_res_input: Literal[True] = Field(
        True, description="Whether the input is low-resolution; it must be."
    )
    cpu_cache_length: int = Field(
        100,
        ge=1,
        le=1_000_000,
        description="Frames above which inference keeps features in host memory.",
    )
    start: Start = "published"
    checkpointing: Checkpointing = Field(
        "blocks",
        description="Values that the backward pass recomputes to save memory: none, the samples of "
        "the deformable convolutions (attention), or whole steps of the branches (blocks).",
    )

    def own_name(self, name: str) -> str | None:
        """The names of the authors' files, of BasicSR's, and without the trainer's step counter."""
        if name == "step_counter":
            return None
        return flow_name(_BASICSR.sub(r"upsample\1.upsample_conv.", name), wrapped=True)


def spec(config: Config) -> ModelSpec:
    """Size rules: any number of frames, and 32 pixels a side: SpyNet halves the size five times."""
    return ModelSpec(
        scale=4,
        charbonnier_eps=1e-12,
        min_size=32,
        features="upsample1",
        parts=parts_around(
            r"(?:upsample\d|conv_hr|conv_last)\.",
            r"conv_last\.",
            flow=r"^spynet\.",
        ),
    )
