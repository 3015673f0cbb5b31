"""The clip store: clips as memory-mapped uint8 arrays, so that a sample reads only its own bytes.

A store is a folder of `<clip>_gt.npy` (T, H, W, 3) and `<clip>_lq.npy` (T, H / scale, W / scale, 3)
files, and what `fedvsr.data.store` writes when these are complete.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from fedvsr.data.degrade import degrade
from fedvsr.errors import UserError
from fedvsr.files import replacing

Frames = npt.NDArray[np.uint8]
Degradation: TypeAlias = Literal["bi", "bd"]

LQ_SUM = "lq_sha256"
"""Key of the checksum of low-resolution frames in a clip's entry."""
NOT_KEPT = {"folder", "cut", "degradation", "lq_path"}
"""Fields of a clip that its entry in the manifest lacks."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One clip of a store: its place and its size. Sizes are those of the ground truth."""

    clip_id: str
    label: str
    """Its kind of content: a class, a folder's name, or the video that it was cut from."""
    folder: str
    num_frames: int
    height: int
    width: int
    scale: int
    sha256: str = ""
    """Checksum of the ground truth (see `checksum`); empty in a store of format 1."""
    cut: bool = False
    """Whether it is a part of a longer recording, as its id says (see `video_of`)."""
    degradation: str = "bi"
    """How its low-resolution frames were made: `bi`, `bd` or a name in `data.degradation`."""
    lq_path: str = ""
    """File of low-resolution frames that are not the store's own."""

    def gt(self) -> Frames:
        """Ground truth, uint8 RGB (T, H, W, 3), memory-mapped and read-only."""
        return self._open("gt")

    def lq(self) -> Frames:
        """Low-resolution frames, uint8 RGB (T, H / scale, W / scale, 3), memory-mapped."""
        return self._open("lq")

    def _open(self, kind: str) -> Frames:
        path = Path(self.folder) / f"{self.clip_id}_{kind}.npy"
        if kind == "lq" and self.lq_path:
            path = Path(self.lq_path)
        try:
            frames: Frames = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise UserError(
                f"clip {self.clip_id} is not at {path}; on a cluster, set data.cache_dir to a "
                "folder that every node can read"
            ) from None
        except (OSError, ValueError, EOFError):
            raise UserError(f"{path} is damaged or not readable; prepare it again") from None
        return frames


def write_clip(
    folder: Path,
    clip_id: str,
    label: str,
    pairs: Iterable[tuple[Frames, Frames | None]],
    scale: int,
    degradation: Degradation,
) -> dict[str, Any]:
    """Write one clip's two files, frame by frame, and return its entry for the manifest.

    Both files are written under temporary names and renamed at the end.

    Args:
        folder: the store's folder.
        clip_id: the clip's name.
        label: its label.
        pairs: ground truth, uint8 RGB (H, W, 3) with H and W multiples of `scale`, and the
            low-resolution frame, uint8 RGB (H / scale, W / scale, 3), or None to make it.
        scale: the reduction.
        degradation: how low-resolution frames are made.

    Raises:
        UserError: a given low-resolution frame has the wrong size for its ground truth.
    """
    with ExitStack() as stack:
        gt_file, lq_file = (
            _ArrayFile(stack, stack.enter_context(replacing(folder / f"{clip_id}_{kind}.npy")))
            for kind in ("gt", "lq")
        )
        for gt, given_lq in pairs:
            height, width = gt.shape[:2]
            lq = reduce(gt, scale, degradation) if given_lq is None else given_lq
            if lq.shape != (height // scale, width // scale, 3):
                raise UserError(
                    f"clip {clip_id}: frame {gt_file.num_frames} has {width} x {height} pixels and "
                    f"{lq.shape[1]} x {lq.shape[0]} at low resolution; x{scale} needs "
                    f"{width // scale} x {height // scale}"
                )
            gt_file.append(gt)
            lq_file.append(lq)
        shape, sha256 = gt_file.finish()
        _, lq_sha256 = lq_file.finish()
    clip = Clip(clip_id, label, "", *shape, scale, sha256)
    entry = {k: v for k, v in asdict(clip).items() if k not in NOT_KEPT}
    return entry | {LQ_SUM: lq_sha256}


def write_frames(path: Path, frames: Iterable[Frames]) -> tuple[tuple[int, int, int], str]:
    """Write frames, uint8 RGB (H, W, 3), as one array; the file is renamed when it is whole.

    Returns:
        Their number, height and width, and the checksum (see `checksum`).
    """
    with ExitStack() as stack:
        file = _ArrayFile(stack, stack.enter_context(replacing(path)))
        for frame in frames:
            file.append(frame)
        return file.finish()


def reduce(gt: Frames, scale: int, degradation: Degradation) -> Frames:
    """Reduce one ground-truth frame, uint8 RGB (H, W, 3), by `degrade`."""
    lq: Frames = degrade(gt[None], degradation, scale)[0]
    return lq


def checksum(frames: Frames) -> str:
    """SHA-256 of an array's raw bytes in C order: equal frames have equal checksums."""
    digest = hashlib.sha256()
    for frame in frames:
        digest.update(np.ascontiguousarray(frame).data)
    return digest.hexdigest()


class _ArrayFile:
    """A `.npy` file of uint8 frames that are written one by one; their number is not yet known."""

    def __init__(self, stack: ExitStack, path: Path) -> None:
        self._file: IO[bytes] = stack.enter_context(path.open("wb"))
        self._digest = hashlib.sha256()
        self._shape: tuple[int, ...] = (0, 0, 3)
        self.num_frames = 0

    def append(self, frame: Frames) -> None:
        if not self.num_frames:
            self._shape = frame.shape
            self._write_header()
        assert frame.shape == self._shape
        data = np.ascontiguousarray(frame).data
        self._digest.update(data)
        self._file.write(data)
        self.num_frames += 1

    def finish(self) -> tuple[tuple[int, int, int], str]:
        """Close the file; return frames, height and width, and the checksum."""
        self._write_header()
        self._file.close()
        height, width, _ = self._shape
        return (self.num_frames, height, width), self._digest.hexdigest()

    def _write_header(self) -> None:
        # NumPy pads the header so that the first axis can grow: the header's length stays equal.
        shape = (self.num_frames, *self._shape)
        header = {"descr": "|u1", "fortran_order": False, "shape": shape}
        self._file.seek(0)
        np.lib.format.write_array_header_1_0(self._file, header)


def default_cache_dir() -> Path:
    """The folder for cut clips: `$XDG_CACHE_HOME/fedvsr`, by default `~/.cache/fedvsr`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fedvsr"
