"""The clips of the study: which are trained on, which are scored, and which the pilot is scored on.

A folder of clips has a `manifest.json` with the `id`, `file`, `category` (kind of content) and
`motion` (any number that grows with it) of each. Clips with equal `video` there show one scene, and
are never on both sides. docs/design/0024-study.md gives the reasons.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Clip = Mapping[str, Any]

# An earlier study chose learning rates by the scores of these clips, so only the pilot is scored on
# them.
TUNED_ON = (
    "davis_cows",
    "davis_soapbox",
    "sports2d_walk",
    "vid4_calendar",
    "vid4_walk",
    "vipseg_market_a",
)
# Four cameras and two takes in one room.
_ONE_ROOM = "pose2sim_"
PARTS = ("clients", "test", "pilot")


def read_manifest(folder: Path) -> list[Clip]:
    """The clips of a folder."""
    clips: list[Clip] = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["clips"]
    return clips


def sort_out(clips: Iterable[Clip]) -> dict[str, list[Clip]]:
    """The clips of each of `PARTS`, in order of kind and motion.

    In each kind, videos are ordered by their motion, and every second one is a test clip, from the
    second on. A kind with a single video is only trained on.
    """
    parts: dict[str, list[Clip]] = {name: [] for name in PARTS}
    kinds: dict[str, dict[str, list[Clip]]] = {}
    for clip in sorted(clips, key=lambda clip: (clip["category"], clip["motion"], clip["id"])):
        if clip["id"] in TUNED_ON:
            parts["pilot"].append(clip)
        else:
            kinds.setdefault(clip["category"], {}).setdefault(_video(clip), []).append(clip)
    for videos in kinds.values():
        for place, same_video in enumerate(videos.values()):
            parts["test" if place % 2 else "clients"] += same_video
    return parts


def lay_out(source: Path, videos: Path) -> None:
    """Sort the clips into folders of links, one per part and kind, for `data prepare folder`."""
    for name, part in sort_out(read_manifest(source)).items():
        for clip in part:
            link = videos / name / clip["category"] / clip["file"]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(source / clip["file"])


def _video(clip: Clip) -> str:
    """What a clip shows: clips of one scene share it."""
    name = str(clip["id"])
    return str(clip.get("video", _ONE_ROOM if name.startswith(_ONE_ROOM) else name))
