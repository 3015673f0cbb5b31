"""Label the test sets of runs, so that scores of different frames never share a heading.

`evaluations.parquet` names the test set of each clip (`fedvsr.data.testsets`). A label also says
what part of a frame is scored (`128-pixel crop`).

Sets of different runs with one name are told apart by what differs: the scale, the number of frames
or clips, and otherwise a letter, which a note explains. Bicubic's scores tell whether clips with
equal names show equal frames.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from string import ascii_uppercase
from typing import Any

import pandas as pd

from fedvsr.data.testsets import PUBLISHED

# Devices and libraries change bicubic's PSNR by less.
_SAME_DB = 0.005


@dataclass(frozen=True)
class _Scored:
    """What one run scores under one name."""

    scale: int
    frames: tuple[int, ...]
    """By clip, in the order of `clips`."""
    clips: tuple[str, ...]
    bicubic_db: tuple[float, ...]

    def matches(self, other: _Scored) -> bool:
        """Whether both are the same frames."""
        own, others = ((s.scale, s.frames, s.clips) for s in (self, other))
        return own == others and all(
            # Equal also if infinite, or not recorded.
            a == b or abs(a - b) < _SAME_DB or isnan(a) or isnan(b)
            for a, b in zip(self.bicubic_db, other.bicubic_db, strict=True)
        )

    def differences(self) -> list[str]:
        """What tells it from another set, from the most to the least telling."""
        equal = len({*self.frames}) == 1
        frames = _count(self.frames[0] if equal else sum(self.frames), "frame")
        frames += "" if equal else " in all"
        return [f"x{self.scale}", frames, _count(len(self.clips), "clip")]


def label_testsets(
    evaluations: pd.DataFrame, configs: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[tuple[str, str], str], tuple[str, ...]]:
    """The test set of each clip of each run.

    Args:
        evaluations: the table `evaluations` of all runs.
        configs: the configuration of each run.

    Returns:
        The names by run and clip, and sentences on names that a letter tells apart.
    """
    of_name = dict[str, list[tuple[str, _Scored]]]()
    # With several degradations, bicubic's mean over them tells equal frames.
    of_clip = ["run_id", "clip_id"]
    means = evaluations.groupby(of_clip)["bicubic_psnr_db"].mean().rename("bicubic_mean_db")
    rows = evaluations.drop_duplicates(of_clip).merge(means.reset_index(), on=of_clip)
    for run_id, own in rows.groupby("run_id"):
        config = configs[str(run_id)]
        for name, clips in own.groupby("test_set"):
            clips = clips.sort_values("clip_id")
            scored = _Scored(
                config.get("data", {}).get("scale", 4),
                tuple(clips["num_frames"]),
                tuple(clips["clip_id"]),
                tuple(clips["bicubic_mean_db"]),
            )
            part = _part(str(name), config.get("evaluation", {}))
            full = f"{name} ({', '.join(part)})" if part else str(name)
            of_name.setdefault(full, []).append((str(run_id), scored))
    names, notes = dict[tuple[str, str], str](), list[str]()
    for name, members in of_name.items():
        sets = _distinct(scored for _, scored in members)
        labels = _apart(name, sets)
        notes += [_note(label, scored) for scored, label, is_lettered in labels if is_lettered]
        for run_id, scored in members:
            label = next(label for known, label, _ in labels if known.matches(scored))
            names |= {(run_id, clip_id): label for clip_id in scored.clips}
    return names, tuple(notes)


def _part(name: str, evaluation: Mapping[str, Any]) -> list[str]:
    """The part of the test set that is scored, in words."""
    crop, first = evaluation.get("crop"), evaluation.get("max_frames")
    part = [f"{crop}-pixel crop"] if crop else []
    # Readers know the length of the published sets.
    return [*part, f"first {_count(first, 'frame')}"] if first and name in PUBLISHED else part


def _distinct(sets: Iterable[_Scored]) -> list[_Scored]:
    distinct = list[_Scored]()
    for scored in sets:
        if not any(known.matches(scored) for known in distinct):
            distinct.append(scored)
    return sorted(distinct, key=lambda scored: (scored.frames, scored.clips, scored.bicubic_db))


def _apart(name: str, sets: Sequence[_Scored]) -> list[tuple[_Scored, str, bool]]:
    """Each set, a name of its own, and whether the name has a letter."""
    words = [scored.differences() for scored in sets]
    telling = [i for i in range(len(words[0])) if len({own[i] for own in words}) > 1]
    labels = [[own[i] for i in telling] for own in words]
    lettered = len({*map(tuple, labels)}) < len(sets)
    named = list[tuple[_Scored, str, bool]]()
    for i, (scored, parts) in enumerate(zip(sets, labels, strict=True)):
        letter = ascii_uppercase[i] if i < len(ascii_uppercase) else str(i + 1)
        parts = [*parts, *([f"set {letter}"] if lettered else [])]
        if parts and name.endswith(")"):
            label = f"{name[:-1]}, {', '.join(parts)})"
        else:
            label = f"{name} ({', '.join(parts)})" if parts else name
        named.append((scored, label, lettered))
    return named


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _note(label: str, scored: _Scored) -> str:
    shown = ", ".join(scored.clips[:4]) + (", ..." if len(scored.clips) > 4 else "")
    mean = sum(scored.bicubic_db) / len(scored.bicubic_db)
    return f"{label}: {_count(len(scored.clips), 'clip')} ({shown}), bicubic {mean:.2f} dB"
