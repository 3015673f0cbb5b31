"""The metrics: one entry each, from which columns, headings and directions follow.

Definitions: `docs/explanation/metrics.md`. `fedvsr.metrics.fidelity` computes PSNR and SSIM,
`perceptual` LPIPS and DISTS, `vmaf` VMAF and `temporal` tOF; `meter` compares clips by those that
are chosen. This module loads neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BICUBIC = "bicubic_"
"""Prefix of the columns that hold the scores of bicubic enlargement."""


@dataclass(frozen=True)
class Metric:
    """A measure of super-resolved frames against ground truth."""

    name: str
    """What `evaluation.metrics` calls it; of those that are always scored, the column."""
    column: str
    """Its column in result tables, with the unit; that of bicubic enlargement has a prefix."""
    label: str
    """Its name in tables and figures."""
    description: str
    """What it measures, in a few words."""
    unit: str = "1"
    """`1` for a number without a unit."""
    decimals: int = 4
    higher_is_better: bool = True
    min_side: int = 11
    """Pixels a side that frames need."""
    package: str = ""
    """The module of another package that computes it; empty if it is always scored."""

    @property
    def suffix(self) -> str:
        """What follows a value in running text: ` dB`, or nothing."""
        return "" if self.unit == "1" else f" {self.unit}"

    @property
    def heading(self) -> str:
        """The label with the unit, for headings and axes."""
        return self.label if self.unit == "1" else f"{self.label} ({self.unit})"

    def text(self, value: float) -> str:
        """A value with its decimals and its unit."""
        return f"{value:.{self.decimals}f}{self.suffix}"


_ALL = (
    Metric("psnr_db", "psnr_db", "PSNR", "PSNR of RGB", "dB", decimals=2),
    Metric("ssim", "ssim", "SSIM", "SSIM of RGB"),
    Metric("psnr_y_db", "psnr_y_db", "PSNR-Y", "PSNR of BT.601 luma", "dB", decimals=2),
    Metric("ssim_y", "ssim_y", "SSIM-Y", "SSIM of BT.601 luma"),
    Metric(
        "lpips",
        "lpips",
        "LPIPS",
        "LPIPS (AlexNet) of RGB",
        higher_is_better=False,
        min_side=32,
        package="lpips",
    ),
    Metric(
        "dists",
        "dists",
        "DISTS",
        "DISTS of RGB",
        higher_is_better=False,
        min_side=32,
        package="DISTS_pytorch",
    ),
    Metric(
        "vmaf",
        "vmaf",
        "VMAF",
        "VMAF (vmaf_v0.6.1)",
        decimals=2,
        min_side=64,
        package="imageio_ffmpeg",
    ),
    Metric(
        "tof",
        "tof_px",
        "tOF",
        "Error of optical flow from frame to frame (Farneback)",
        "px",
        higher_is_better=False,
        min_side=32,
        package="cv2",
    ),
)
METRICS = {metric.column: metric for metric in _ALL}
"""Every metric by its column, in the order of tables."""

OPTIONAL = {metric.name: metric for metric in _ALL if metric.package}
"""The metrics that `evaluation.metrics` adds, by name."""


def columns(metrics: Iterable[str] = METRICS) -> list[str]:
    """The columns of metrics, and then those of bicubic enlargement."""
    names = list(metrics)
    return [*names, *(BICUBIC + name for name in names)]
