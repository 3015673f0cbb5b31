"""The pictures of test frames that a run keeps, for the slider."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import numpy as np
from PIL import Image

from fedvsr.dashboard.values import finite
from fedvsr.metrics.psnr import psnr
from fedvsr.report.saved_frames import SavedFrame, saved_frames

_NAMES = {"bicubic": "LQ (bicubic)", "sr": "Network", "gt": "Ground truth"}
# Scenes shown: the pictures are read once each, for their PSNR.
_MOST = 40


def scenes(folder: Path, run_id: str) -> list[dict[str, Any]]:
    """The frames of which all pictures are there, as `parts.js` shows them.

    Args:
        folder: the run's.
        run_id: goes into the addresses of the pictures.

    Raises:
        OSError: a picture cannot be read.
        ValueError: the pictures of a frame differ in size.
    """
    by_frame = dict[tuple[str, int], dict[str, SavedFrame]]()
    for saved in saved_frames(folder):
        by_frame.setdefault((saved.clip_id, saved.frame_idx), {})[saved.kind] = saved
    whole = [(key, kinds) for key, kinds in by_frame.items() if len(kinds) == len(_NAMES)]
    return [_scene(key, kinds, run_id) for key, kinds in whole[:_MOST]]


def _address(run_id: str, path: Path) -> str:
    """The address of a picture, which is another one once the file has changed."""
    changed = format(path.stat().st_mtime_ns, "x")
    return "frame?" + urlencode({"id": run_id, "name": path.name, "changed": changed})


def _scene(key: tuple[str, int], kinds: dict[str, SavedFrame], run_id: str) -> dict[str, Any]:
    read = {kind: np.asarray(Image.open(s.path).convert("RGB")) for kind, s in kinds.items()}
    gt = read["gt"]
    pictures = [
        {
            "name": name,
            "psnr_db": None if kind == "gt" else finite(float(psnr(read[kind], gt))),
            "url": _address(run_id, kinds[kind].path),
        }
        for kind, name in _NAMES.items()
    ]
    clip_id, frame_idx = key
    return {
        "name": f"{clip_id}, frame {frame_idx}",
        "width": gt.shape[1],
        "height": gt.shape[0],
        "pictures": pictures,
    }
