"""Scores of test clips, and their means."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean


@dataclass(frozen=True, kw_only=True)
class Scores:
    """Quality of super-resolved frames, beside that of bicubic enlargement: a mean."""

    values: Mapping[str, float]
    """By column of `evaluations`, such as `psnr_db` and `bicubic_psnr_db`."""

    @property
    def gain_db(self) -> float | None:
        """PSNR of RGB minus that of bicubic enlargement; None in a record without RGB."""
        psnr_db, bicubic_psnr_db = map(self.values.get, ("psnr_db", "bicubic_psnr_db"))
        return None if psnr_db is None or bicubic_psnr_db is None else psnr_db - bicubic_psnr_db


@dataclass(frozen=True, kw_only=True)
class ClipScore(Scores):
    """Means over the frames of one test clip."""

    clip_id: str
    test_set: str
    num_frames: int
    degradation: str = ""
    """How the low-resolution frames were made; empty if unknown."""

    def row(self) -> dict[str, str | int | float | None]:
        """Columns of `evaluations`."""
        return {
            "test_set": self.test_set,
            "clip_id": self.clip_id,
            "degradation": self.degradation or None,
            "num_frames": self.num_frames,
            **self.values,
        }


@dataclass(frozen=True, kw_only=True)
class Scored:
    """What an evaluator gives for one network."""

    scores: Sequence[ClipScore]
    pictures: Mapping[str, bytes]
    """PNG files of the middle frame of each clip, by name, `CLIP_FRAME_KIND.png`: `sr`, and for the
    evaluator's first network also `bicubic` and `gt`, which are the same for all. `CLIP` is
    `CLIP@DEGRADATION` for a clip that is scored under several degradations."""
    wall_s: float
    """Wall seconds that it took."""


def scored_part(crop: int | None) -> str:
    """The part of each frame that is scored, in words; empty for the whole frame.

    Args:
        crop: the setting `evaluation.crop`.
    """
    return f"centred {crop}-pixel crop" if crop else ""


def by_degradation(scores: Iterable[ClipScore]) -> dict[str, list[ClipScore]]:
    """Scores of one test set by degradation, in the order in which these first occur."""
    kinds = dict[str, list[ClipScore]]()
    for score in scores:
        kinds.setdefault(score.degradation, []).append(score)
    return kinds


def mean_scores(scores: Iterable[Scores]) -> Scores:
    """Means over clips, each clip counted once whatever its length.

    If each client has its own network, a clip has a score for each client, and of several
    degradations one for each; all scores count alike.

    Returns:
        The means of the columns that all of them have.

    Raises:
        ValueError: there are no scores.
    """
    scores = list(scores)
    if not scores:
        raise ValueError("the mean of no scores")
    shared = [key for key in scores[0].values if all(key in score.values for score in scores)]
    return Scores(values={key: fmean(score.values[key] for score in scores) for key in shared})


def by_test_set(scores: Iterable[ClipScore]) -> dict[str, list[ClipScore]]:
    """Scores by test set, in the order in which the sets first occur.

    The first set is the one that a run's headline numbers are of.
    """
    sets = dict[str, list[ClipScore]]()
    for score in scores:
        sets.setdefault(score.test_set, []).append(score)
    return sets


def headline(scores: Iterable[ClipScore]) -> tuple[str, Scores]:
    """The first test set, and the means over its clips.

    Raises:
        ValueError: there are no scores.
    """
    sets = by_test_set(scores)
    name = next(iter(sets), "")
    return name, mean_scores(sets.get(name, ()))
