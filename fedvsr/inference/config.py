"""The `evaluation` section: when and how the global network is scored."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from fedvsr.metrics import OPTIONAL
from fedvsr.section import Former, OnlyWith, Section

MetricName: TypeAlias = Literal["lpips", "dists", "vmaf", "tof"]


class TileConfig(Section):
    """Tiles of inference, in frames and low-resolution pixels. Overlaps are averaged."""

    frames: int | None = Field(None, ge=1, description="Frames a tile (default: the whole clip).")
    size: int | None = Field(
        None, ge=8, description="Height and width of a tile (default: the whole frame)."
    )
    overlap_frames: Annotated[int, OnlyWith("frames")] = Field(
        2, ge=0, description="Frames that neighbouring tiles share."
    )
    overlap: Annotated[int, OnlyWith("size")] = Field(
        16, ge=0, description="Pixels that neighbouring tiles share."
    )

    def model_post_init(self, _: object) -> None:
        """Check that each tile starts after the one before it."""
        if self.frames is not None and self.overlap_frames >= self.frames:
            raise ValueError(f"overlap_frames = {self.overlap_frames} must be below frames")
        if self.size is not None and self.overlap >= self.size:
            raise ValueError(f"overlap = {self.overlap} must be below size = {self.size}")


class EvaluationConfig(Section):
    """When and how the global network is scored."""

    every_rounds: int = Field(1, ge=1, description="Rounds from one scoring to the next.")
    luma: Annotated[
        bool, Former("luma is always scored beside RGB, in the columns psnr_y_db and ssim_y")
    ] = Field(False, description="Has no effect: luma is always scored beside RGB.")
    lpips: Annotated[bool, Former("write evaluation.metrics: [lpips]")] = Field(
        False, description="Has no effect: write `metrics: [lpips]`."
    )
    metrics: list[MetricName] = Field(
        [],
        description="Metrics to score beside PSNR and SSIM: lpips, dists, vmaf, tof (they need the "
        "extra `metrics`).",
    )
    metric_weights: Annotated[str | None, OnlyWith("metrics")] = Field(
        None,
        description="Folder with AlexNet's and VGG16's weights, which lpips and dists need "
        "(default: torchvision's, which it downloads).",
    )
    max_frames: int | None = Field(
        None, ge=1, description="Frames scored from the start of each test clip (default: all)."
    )
    crop: int | None = Field(
        None,
        ge=16,
        description="Score only a centred square with this side, in pixels (default: the frame).",
    )
    tiles: TileConfig = Field(TileConfig(), description="Tiles of inference.")
    num_threads: int = Field(1, ge=1, le=256, description="CPU threads of the evaluator.")

    def model_post_init(self, _: object) -> None:
        """Check that the part that is scored is large enough for each metric."""
        for name in self.metrics:
            if self.metrics.count(name) > 1:
                raise ValueError(f"metrics names {name} twice")
            least = OPTIONAL[name].min_side
            if self.crop is not None and self.crop < least:
                raise ValueError(f"crop = {self.crop} must be at least {least} for {name}")
