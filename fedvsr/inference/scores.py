"""Scores of test clips, and their means."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Quality of super-resolved frames, beside that of bicubic enlargement: a mean."""

    psnr_db: float
    ssim: float
    lpips: float | None = None
    """None if not scored."""
    bicubic_psnr_db: float
    bicubic_ssim: float
    bicubic_lpips: float | None = None

    @property
    def gain_db(self) -> float:
        """PSNR minus that of bicubic enlargement."""
        return self.psnr_db - self.bicubic_psnr_db


@dataclass(frozen=True, kw_only=True)
class ClipScore(Scores):
    """Means over the frames of one test clip."""

    clip_id: str
    num_frames: int


def scored_part(crop: int | None) -> str:
    """The part of each frame that is scored, in words; empty for the whole frame.

    Args:
        crop: the setting `evaluation.crop`.
    """
    return f"centred {crop}-pixel crop" if crop else ""


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """Means over clips, each clip counted once whatever its length.

    If each client has its own network, a clip has a score for each client; all scores count alike.

    Raises:
        ValueError: there are no scores.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("the mean of no scores")
    return Scores(
        psnr_db=fmean(score.psnr_db for score in scores),
        ssim=fmean(score.ssim for score in scores),
        lpips=_mean([score.lpips for score in scores]),
        bicubic_psnr_db=fmean(score.bicubic_psnr_db for score in scores),
        bicubic_ssim=fmean(score.bicubic_ssim for score in scores),
        bicubic_lpips=_mean([score.bicubic_lpips for score in scores]),
    )


def _mean(values: Iterable[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return fmean(numbers) if numbers else None
