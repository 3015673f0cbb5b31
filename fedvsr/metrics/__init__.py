"""The metrics: one entry each, from which columns, headings and directions follow.

Definitions: `docs/explanation/metrics.md`. `fedvsr.metrics.fidelity` computes PSNR and SSIM,
`fedvsr.metrics.perceptual` LPIPS. This module loads neither torch nor numpy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

BICUBIC = "bicubic_"
"""Prefix of the columns that hold the scores of bicubic enlargement."""


@dataclass(frozen=True)
class Metric:
    """A measure of super-resolved frames against ground truth."""

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
    extra: str = ""
    """The extra that installs what computes it; empty if it is always scored."""

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
    Metric("psnr_db", "PSNR", "PSNR of RGB", "dB", decimals=2),
    Metric("ssim", "SSIM", "SSIM of RGB"),
    Metric("psnr_y_db", "PSNR-Y", "PSNR of BT.601 luma", "dB", decimals=2),
    Metric("ssim_y", "SSIM-Y", "SSIM of BT.601 luma"),
    Metric("lpips", "LPIPS", "LPIPS (AlexNet) of RGB", higher_is_better=False, extra="metrics"),
)
METRICS = {metric.column: metric for metric in _ALL}
"""Every metric by its column, in the order of tables."""


def columns(metrics: Iterable[str] = METRICS) -> list[str]:
    """The columns of metrics, and then those of bicubic enlargement."""
    names = list(metrics)
    return [*names, *(BICUBIC + name for name in names)]
