"""The clip store: cut clips as memory-mapped uint8 arrays, so that a sample reads its own bytes.

A store is a folder of `<clip>_gt.npy` (T, H, W, 3) and `<clip>_lq.npy` (T, H / scale, W / scale, 3)
files and a `manifest.json`, which is written last: a folder with a manifest is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fedvsr.data.degrade import bicubic_downscale, quantise
from fedvsr.errors import UserError

Frames = npt.NDArray[np.uint8]

_MANIFEST = "manifest.json"
_FORMAT = 1


@dataclass(frozen=True)
class Clip:
    """Where one clip lies and how large it is. Sizes are those of the ground truth."""

    clip_id: str
    label: str
    """What kind of content it is: here the video it was cut from."""
    folder: str
    num_frames: int
    height: int
    width: int
    scale: int

    def gt(self) -> Frames:
        """Ground truth, uint8 RGB (T, H, W, 3), memory-mapped and read-only."""
        return self._open("gt")

    def lq(self) -> Frames:
        """Low-resolution frames, uint8 RGB (T, H / scale, W / scale, 3), memory-mapped."""
        return self._open("lq")

    def _open(self, kind: str) -> Frames:
        path = Path(self.folder) / f"{self.clip_id}_{kind}.npy"
        try:
            frames: Frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(
                f"clip {self.clip_id} is not at {path}; on a cluster, data.cache_dir must be a "
                "folder that every node sees"
            ) from None
        return frames


def read_store(folder: Path) -> list[Clip] | None:
    """The clips of a finished store, or None where there is none."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
    except FileNotFoundError:
        return None
    if manifest["format"] != _FORMAT:
        raise UserError(f"{folder} is of store format {manifest['format']}; delete it")
    return [Clip(folder=str(folder), **entry) for entry in manifest["clips"]]


@contextmanager
def write_store(folder: Path) -> Iterator[StoreWriter]:
    """Write a store aside and rename it into place; after an error nothing is left behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        writer = StoreWriter(aside)
        yield writer
        manifest = {"format": _FORMAT, "clips": writer.entries}
        (aside / _MANIFEST).write_text(json.dumps(manifest, indent=1))
        try:
            aside.rename(folder)
        except OSError:
            # Somebody else finished the same store meanwhile; theirs is as good.
            if read_store(folder) is None:
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


class StoreWriter:
    """Adds clips to a store that is being written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.entries: list[dict[str, object]] = []

    def add(self, clip_id: str, label: str, gt: Frames, scale: int) -> None:
        """Add a clip from its ground truth, uint8 RGB (T, H, W, 3), H and W multiples of `scale`.

        The low-resolution frames are MATLAB-compatible bicubic, quantised to uint8 as the field's
        data sets store them.
        """
        lq = np.stack([quantise(bicubic_downscale(f.astype(np.float32) / 255, scale)) for f in gt])
        np.save(self.folder / f"{clip_id}_gt.npy", gt)
        np.save(self.folder / f"{clip_id}_lq.npy", lq)
        num_frames, height, width = gt.shape[:3]
        clip = Clip(clip_id, label, "", num_frames, height, width, scale)
        self.entries.append({k: v for k, v in asdict(clip).items() if k != "folder"})


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/fedvsr`, by default `~/.cache/fedvsr`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvsr"
