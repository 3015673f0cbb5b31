"""A clip store's list of clips: who reads it gets a table, and no object for each clip.

`manifest.json` lists the clips and says how they were made; of many clips it refers to a
`clips.parquet` that lists them. It is written last, so a folder that has one is a finished store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import pyarrow as pa

from fedvsr.checked import read_parquet, write_parquet
from fedvsr.checked_text import read_json, write_json
from fedvsr.data.client_clips import ClipTable
from fedvsr.data.clips import LQ_SUM, NOT_KEPT, Clip
from fedvsr.errors import DamagedError, UserError

MANIFEST, INDEX = "manifest.json", "clips.parquet"
# Format 1 has no checksums and no record of what the store was made from. A store of format 3 has
# more clips than a manifest holds, and an index of them.
_FORMAT, _WITH_INDEX, _READABLE = 2, 3, (1, 2, 3)
# Clips up to which anybody can read the manifest in an editor, and earlier versions the store.
_MOST_IN_MANIFEST = 10_000


@dataclass(frozen=True)
class Store:
    """A finished store: its clips and the other contents of its manifest."""

    folder: Path
    clips: ClipTable
    format: int
    source: str = "video"
    """The kind of data set that it was made from: reds, vid4, kinetics, folder or video."""
    degradation: str = "bi"
    """How its low-resolution frames were made, `bi` or `bd`."""
    request: dict[str, Any] = field(default_factory=dict)
    """The settings that it was made with; empty in stores of earlier versions."""
    notes: tuple[str, ...] = ()
    """What a user should know about the clips, e.g. which were cropped."""
    rejected: tuple[dict[str, str], ...] = ()
    """Videos that could not be used and were replaced: label, video, reason."""
    lq_sums: Callable[[], Sequence[str]] = field(default=list, compare=False)
    """Reads the checksums of low-resolution frames, in the order of the clips."""

    @cached_property
    def lq_sha256(self) -> dict[str, str]:
        """Checksum of each clip's low-resolution frames, by clip id."""
        ids = [clip.clip_id for clip in self.clips]
        return dict(zip(ids, self.lq_sums(), strict=True))


def read_store(folder: Path) -> ClipTable | None:
    """The clips of a finished store; None if the folder is not a store."""
    store = open_store(folder)
    return None if store is None else store.clips


def open_store(folder: Path) -> Store | None:
    """Read a store's manifest; None if the folder has none.

    Raises:
        UserError: the manifest cannot be read, is damaged, or has an unknown format.
    """
    path = folder / MANIFEST
    try:
        manifest = read_json(path)
        if manifest["format"] not in _READABLE:
            raise UserError(
                f"{folder} has store format {manifest['format']}, which this version cannot read; "
                "delete it and prepare it again"
            )
        columns, num_clips, lq_sums = _index(folder, manifest)
        request = manifest.get("request", {})
        cut = manifest.get("source", Store.source) == "video" or bool(request.get("clip_frames"))
        own: dict[str, Any] = {"folder": str(folder), "cut": cut}
        own["degradation"] = manifest.get("degradation", Store.degradation)
        clips = ClipTable.of_columns(columns | own, num_clips)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except DamagedError as error:
        raise UserError(f"{error}; delete {folder} and prepare it again") from None
    except (KeyError, TypeError, AttributeError, pa.ArrowInvalid):
        raise UserError(f"{path} is not a clip store's manifest; delete {folder}") from None
    return Store(
        folder,
        clips,
        manifest["format"],
        manifest.get("source", Store.source),
        manifest.get("degradation", Store.degradation),
        request,
        tuple(manifest.get("notes", ())),
        tuple(manifest.get("rejected", ())),
        lq_sums,
    )


# What a store lists of its clips: columns by name, the number of rows, and what reads the checksums
# of low-resolution frames.
_Listed = tuple[dict[str, Any], int, Callable[[], Sequence[str]]]


def _index(folder: Path, manifest: dict[str, Any]) -> _Listed:
    """The clips of a store by columns, from its manifest or from the index that it refers to."""
    kept = [f.name for f in fields(Clip) if f.name not in NOT_KEPT]
    listed = manifest["clips"]
    if isinstance(listed, list):
        # A column that an entry lacks is one that no entry has.
        names = [name for name in kept if any(name in entry for entry in listed)]
        columns = {name: [entry[name] for entry in listed] for name in names}
        return columns, len(listed), lambda: [entry.get(LQ_SUM, "") for entry in listed]
    path, num_clips = folder / INDEX, int(listed["number"])
    try:
        table = read_parquet(path, kept)
    except FileNotFoundError:
        raise DamagedError(path, "is missing") from None
    if table.num_rows != num_clips:
        raise DamagedError(
            path, f"lists {table.num_rows} clips, and {folder / MANIFEST} has {num_clips}"
        )
    columns = {name: table[name] for name in kept}
    return columns, num_clips, lambda: read_parquet(path, [LQ_SUM])[LQ_SUM].to_pylist()


def write_manifest(
    folder: Path,
    entries: Iterable[dict[str, Any]],
    source: str,
    degradation: str,
    request: dict[str, Any],
    notes: Iterable[str] = (),
    rejected: Iterable[dict[str, str]] = (),
) -> None:
    """Write the manifest, which makes a folder of clips a finished store.

    Args:
        folder: the folder that holds the clips' files.
        entries: what `write_clip` returned, in the order of the clips.
        source: see `Store`, as for the rest.
        degradation: how low-resolution frames were made.
        request: the settings.
        notes: what a user should know.
        rejected: videos that were replaced.
    """
    listed: Any = list(entries)
    many = len(listed) > _MOST_IN_MANIFEST
    if many:
        write_parquet(folder / INDEX, pa.Table.from_pylist(listed))
        listed = {"file": INDEX, "number": len(listed)}
    manifest = {
        "format": _WITH_INDEX if many else _FORMAT,
        "source": source,
        "degradation": degradation,
        "request": request,
        "notes": list(notes),
        "rejected": list(rejected),
        "clips": listed,
    }
    write_json(folder / MANIFEST, manifest)
