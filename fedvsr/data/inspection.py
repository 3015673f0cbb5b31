"""Look into a clip store: its contents, its checksums, and a sheet of pictures."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from fedvsr.data.clips import Clip, checksum
from fedvsr.data.prepare import num_cores
from fedvsr.data.store import Store, open_store
from fedvsr.errors import UserError
from fedvsr.files import replacing

_MARGIN, _CAPTION = 6, 14


def require_store(path: Path) -> Store:
    """Open the store at a path.

    Raises:
        UserError: the path is not a finished store.
    """
    store = open_store(path)
    if store is None:
        unfinished = path.resolve().with_name(f".{path.resolve().name}-partial")
        hint = (
            f"its preparation is unfinished ({unfinished}); repeat the command to resume it"
            if unfinished.is_dir()
            else "`fedvsr data prepare` makes one"
        )
        raise UserError(f"{path} is not a clip store; {hint}")
    return store


def num_bytes(clip: Clip) -> int:
    """Bytes of a clip's frames, both resolutions together."""
    pixels = clip.height * clip.width + (clip.height // clip.scale) * (clip.width // clip.scale)
    return 3 * clip.num_frames * pixels


def fingerprint(store: Store) -> str:
    """SHA-256 of all clips' names, labels and checksums: equal fingerprints mean equal data."""
    lines = [
        f"{clip.clip_id}\t{clip.label}\t{clip.sha256}\t{store.lq_sha256[clip.clip_id]}\n"
        for clip in store.clips
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def duplicates(store: Store) -> list[list[str]]:
    """Groups of clips, by their ids, that have the same ground truth."""
    same = defaultdict[str, list[str]](list)
    for clip in store.clips:
        if clip.sha256:
            same[clip.sha256].append(clip.clip_id)
    return [names for names in same.values() if len(names) > 1]


def verify(store: Store, progress: Callable[[float, int], None] | None = None) -> dict[str, str]:
    """Compare every clip with its checksums, on all cores; return what is wrong by clip id.

    Raises:
        UserError: the store has format 1, which has no checksums.
    """
    if store.format == 1:
        raise UserError(f"{store.folder} has format 1, without checksums; prepare it again")
    total, done = sum(clip.num_frames for clip in store.clips), 0
    wrong = dict[str, str]()
    with ThreadPoolExecutor(num_cores()) as pool:
        faults = pool.map(lambda clip: _fault(clip, store.lq_sha256[clip.clip_id]), store.clips)
        for clip, fault in zip(store.clips, faults, strict=True):
            done += clip.num_frames
            if fault:
                wrong[clip.clip_id] = fault
            if progress:
                progress(done, total)
    return wrong


def _fault(clip: Clip, lq_sha256: str) -> str | None:
    shape = (clip.num_frames, clip.height, clip.width, 3)
    small = (shape[0], clip.height // clip.scale, clip.width // clip.scale, 3)
    try:
        for name, frames, expected, digest in (
            ("ground truth", clip.gt(), shape, clip.sha256),
            ("low resolution", clip.lq(), small, lq_sha256),
        ):
            if frames.dtype != np.uint8 or frames.shape != expected:
                return f"{name} is {frames.dtype} {frames.shape}, not uint8 {expected}"
            if checksum(frames) != digest:
                return f"{name} differs from its checksum"
    except UserError as error:
        return str(error)
    return None


def contact_sheet(store: Store, path: Path, *, max_clips: int = 120, width: int = 1920) -> int:
    """Write a PNG with clips' middle frames, names and labels; return the number of clips on it.

    Args:
        store: the store.
        path: the PNG.
        max_clips: if the store has more clips, this many are shown, evenly spread.
        width: the sheet's width in pixels.
    """
    count = min(max_clips, len(store.clips))
    clips = [store.clips[i * len(store.clips) // count] for i in range(count)]
    columns = max(1, min(count, 8, round((count * 16 / 9) ** 0.5)))
    # Fill the rows evenly: 2 x 2 rather than 3 + 1.
    columns = -(-count // -(-count // columns))
    cell = width // columns
    inner = cell - 2 * _MARGIN
    # All frames are as wide as a cell. A row is as high as its highest frame, not the sheet's.
    sizes = [(inner, max(1, round(inner * clip.height / clip.width))) for clip in clips]
    starts = range(0, count, columns)
    heights = [max(height for _, height in sizes[i : i + columns]) for i in starts]
    tops = np.cumsum([0, *(height + _CAPTION + 2 * _MARGIN for height in heights)]).tolist()
    sheet = Image.new("RGB", (width, tops[-1]), (24, 24, 24))
    draw = ImageDraw.Draw(sheet)
    for index, (clip, size) in enumerate(zip(clips, sizes, strict=True)):
        x, y = index % columns * cell + _MARGIN, tops[index // columns] + _MARGIN
        frame = Image.fromarray(np.asarray(clip.gt()[clip.num_frames // 2]))
        sheet.paste(frame.resize(size, Image.Resampling.LANCZOS), (x, y))
        caption = clip.clip_id if clip.label in clip.clip_id else f"{clip.clip_id}  {clip.label}"
        while caption and draw.textlength(caption) > inner:
            caption = caption[:-1]
        draw.text((x, y + size[1] + 1), caption, fill=(220, 220, 220))
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return count
