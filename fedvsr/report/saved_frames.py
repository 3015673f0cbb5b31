"""The pictures of test frames that a run keeps: `frames/CLIP_FRAME_KIND.png`."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_FILE = re.compile(r"(?P<clip>.+)_(?P<frame>\d+)_(?P<kind>bicubic|sr|gt)\.png")


@dataclass(frozen=True)
class SavedFrame:
    """A picture of a test clip's frame."""

    clip_id: str
    frame_idx: int
    kind: str
    """`bicubic`, `sr` (the network's) or `gt`."""
    path: Path


def saved_frames(folder: Path) -> Iterator[SavedFrame]:
    """The pictures in a run's folder, by the names of their files."""
    for path in sorted((folder / "frames").glob("*.png")):
        if match := _FILE.fullmatch(path.name):
            yield SavedFrame(match["clip"], int(match["frame"]), match["kind"], path)
