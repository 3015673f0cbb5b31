"""Split clips into those that clients train on and those that are held out for scoring."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.data.client_clips import ClientClips, ClipTable
from fedvsr.data.clips import Clip, default_cache_dir
from fedvsr.data.config import PART_NUMBER, REDS4, DataConfig, is_named, video_of
from fedvsr.data.degrade_config import Degradation, pipelines
from fedvsr.data.degraded import deal as deal_degradations
from fedvsr.data.degraded import degraded
from fedvsr.data.partition import shares
from fedvsr.data.prepare import prepare as make_store
from fedvsr.data.recordings import fingerprint
from fedvsr.data.request import Request
from fedvsr.data.sources.folder import recordings
from fedvsr.data.store import read_store
from fedvsr.data.testsets import HELD_OUT, folder_names, name_clips
from fedvsr.data.videos import Progress, absolute, clips_of, resolve
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean


@dataclass(frozen=True)
class Split:
    """The clips of a run. Those that are trained on become a table."""

    clients: Sequence[Sequence[Clip]]
    """The training clips of each client; client i has the i-th tuple."""
    test: tuple[Clip, ...]
    """The clips to score on; of several degradations, a clip once under each."""
    overlap: tuple[str, ...]
    """Ids of test clips that clients also train on; empty unless `data.allow_overlap` is set."""
    same_video: tuple[str, ...] = ()
    """Ids of test clips that are cut from a video of which clients train on another part."""
    test_sets: dict[str, str] = field(default_factory=dict)
    """The test set of each test clip, by its id: `fedvsr.data.testsets`."""
    order: npt.NDArray[np.int64] | None = field(default=None, compare=False)
    """The clients' clips, by their indices, in the order of the data sets; None: as they are."""

    def __post_init__(self) -> None:
        """Make a table of clips that there may be a million of."""
        object.__setattr__(self, "clients", ClientClips.of(self.clients))

    @property
    def train(self) -> ClipTable:
        """The training clips of all clients, in the order of the data sets."""
        clips = self.of_clients.clips
        return clips if self.order is None else clips.take(self.order)

    @property
    def of_clients(self) -> ClientClips:
        """`clients` as the table that it is."""
        return ClientClips.of(self.clients)

    @property
    def num_test_clips(self) -> int:
        """The number of test clips, each counted once under all degradations."""
        return len({clip.clip_id for clip in self.test})


def prepare(config: DataConfig, seed: int, progress: Progress) -> Split:
    """Find the clips and deal them to clients; videos are cut if that has not been done yet.

    Args:
        config: the `data` section. The clips of its owners are not among those of the result: see
            `fedvsr.data.owners`.
        seed: seed of the partition.
        progress: called while videos are cut.

    Raises:
        UserError: clips are missing, damaged, too few or of another scale, or test clips are also
            training clips.
    """
    how = _of_videos if config.videos else _of_data_sets
    train, sets = how(config, progress)
    test = [clip for clips in sets.values() for clip in clips]
    _require_own_ids(train, "train on")
    _require_own_ids(ClipTable.of(test), "score on")
    test_sets = dict[str, str]()
    for name, clips in sets.items():
        test_sets |= name_clips(name, (clip.clip_id for clip in clips))
    train = _apart(train, test, config.gap_clips)
    if config.max_train_clips:
        order = pc.sort_indices(train.column("clip_id")).to_numpy()
        train = train.take(order[: config.max_train_clips])
    overlap = _overlap(train, test)
    require_no_overlap(overlap, config)
    if config.owners:
        return Split((), tuple(test), overlap, (), test_sets)
    order, counts = deal_as(config, train, config.num_clients, seed)
    dealt = ClientClips(train.take(order), np.cumsum(counts))
    same_video = _same_video(dealt.clips, test)
    if config.degradation is not None:
        dealt, test = _degraded(config, config.degradation, seed, dealt, test, progress)
    return Split(dealt, tuple(test), overlap, same_video, test_sets, np.argsort(order))


def deal_as(
    config: DataConfig,
    clips: ClipTable,
    num_clients: int,
    seed: int,
    setting: str = "data.num_clients",
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Deal clips to clients as the `data` section says; see `fedvsr.data.partition.shares`."""
    return shares(
        clips,
        num_clients,
        seed,
        config.partition,
        alpha=config.alpha,
        clips_per_client=config.clips_per_client,
        setting=setting,
    )


def _degraded(
    config: DataConfig,
    degradation: Degradation,
    seed: int,
    dealt: ClientClips,
    test: Sequence[Clip],
    progress: Progress,
) -> tuple[ClientClips, list[Clip]]:
    """The clips of each client and the test clips, with the low-resolution frames of a setting."""
    steps = pipelines(degradation)
    names_of = deal_degradations(
        dealt, list(steps), seed, config.deal_degradations, config.degradation_alpha
    )
    pairs = [zip(own, names, strict=True) for own, names in zip(dealt, names_of, strict=True)]
    clips = degraded(
        [*chain.from_iterable(pairs), *((clip, name) for name in steps for clip in test)],
        steps,
        config.degradation_seed,
        _cache(config),
        lambda done, total: progress("low-resolution frames (made once)", done, total),
    )
    num_dealt = len(dealt.clips)
    of_clients = ClientClips(ClipTable.of(clips[:num_dealt]), np.cumsum(dealt.counts))
    return of_clients, clips[num_dealt:]


# The test clips of each data set, by its name.
_Sets = dict[str, Sequence[Clip]]


def _of_videos(config: DataConfig, progress: Progress) -> tuple[ClipTable, _Sets]:
    cache = _cache(config)
    train, test = list[Clip](), list[Clip]()
    for name in config.videos:
        path = resolve(name)
        clips = clips_of(
            path, config.clip_frames, config.scale, config.max_clips_per_video, cache, progress
        )
        held_out = config.test_clips_per_video
        if len(clips) <= held_out:
            raise UserError(
                f"{path} gives {len(clips)} clips of {config.clip_frames} frames, of which "
                f"{held_out} would be held out (data.test_clips_per_video), so none is left to "
                "train on; lower data.clip_frames"
            )
        train += clips[:-held_out]
        test += clips[-held_out:]
    return ClipTable.of(train), {HELD_OUT: test}


def _of_data_sets(config: DataConfig, progress: Progress) -> tuple[ClipTable, _Sets]:
    train = _read(config.train, "train", config, progress)
    sets = _Sets()
    for name, folder in zip(folder_names(config.test), config.test, strict=True):
        sets[name] = [*sets.get(name, ()), *_read([folder], "test", config, progress)]
    wanted = list(REDS4) if config.held_out == "reds4" else list(config.held_out)
    ids = train.column("clip_id")
    named = {name: _named(ids, name) for name in sorted(wanted)}
    if missing := [name for name, chosen in named.items() if not len(chosen)]:
        known = ids.to_pylist()
        raise UserError(
            f"data.held_out names clips that data.train does not have: {_some(missing)}"
            + did_you_mean(missing[0], [*known, *(video_of(clip_id)[0] for clip_id in known)])
        )
    is_held = np.zeros(len(train), bool)
    is_held[np.concatenate([np.empty(0, np.int64), *named.values()])] = True
    held_out = train.where(pa.array(is_held))
    return train.where(pa.array(~is_held)), {HELD_OUT: held_out, **sets}


def _named(clip_ids: pa.Array, name: str) -> npt.NDArray[np.int64]:
    """Where the clips are that an entry of `data.held_out` names; see `is_named`."""
    # What the ids of such clips begin with, so that few are compared in Python.
    start = re.split(r"[*?[]", name)[0]
    similar = pc.starts_with(clip_ids, start).to_numpy(zero_copy_only=False)
    places = np.flatnonzero(similar)
    found = clip_ids.take(pa.array(places)).to_pylist()
    return places[[is_named(clip_id, name) for clip_id in found]] if found else places


def _videos(clips: ClipTable) -> tuple[pa.Array, pa.Array]:
    """By clip, its recording (see `_video`) and its number there, as strings."""
    ids, folders = clips.column("clip_id"), clips.column("folder")
    parts = pc.extract_regex(ids, f"^(?P<video>.+)-(?P<number>{PART_NUMBER})$")
    is_part = parts.is_valid()
    video = pc.if_else(is_part, pc.struct_field(parts, "video"), ids)
    number = pc.if_else(is_part, pc.struct_field(parts, "number"), "0")
    return _joined(folders, video), pc.utf8_ltrim(number, "0")


def _joined(*columns: pa.Array) -> pa.Array:
    # No name of a file has this character.
    return pc.binary_join_element_wise(*columns, "\0")


def _apart(train: ClipTable, test: Iterable[Clip], gap: int) -> ClipTable:
    """Training clips without those within `gap` clips of a test clip of the same video."""
    near = {
        "\0".join((*_video(clip), str(number or "")))
        for clip in test
        if clip.cut
        for step in range(-gap, gap + 1)
        if step and (number := video_of(clip.clip_id)[1] + step) >= 0
    }
    if not near:
        return train
    is_near = pc.is_in(_joined(*_videos(train)), value_set=pa.array(sorted(near), pa.string()))
    kept = train.where(pc.invert(pc.and_(train.column("cut"), is_near)))
    if len(train) and not len(kept):
        raise UserError(
            f"data.gap_clips = {gap} leaves no clip to train on; lower it, or hold out fewer clips"
        )
    return kept


def _video(clip: Clip) -> tuple[str, str]:
    """The recording of a clip: its store and its name."""
    return clip.folder, video_of(clip.clip_id)[0]


def _same_video(train: ClipTable, test: Sequence[Clip]) -> tuple[str, ...]:
    """Ids of test clips that are cut from a video of which another part is trained on."""
    cut = {clip.clip_id: "\0".join(_video(clip)) for clip in test if clip.cut}
    if not cut:
        return ()
    videos, _ = _videos(train.where(train.column("cut")))
    trained = set(_among(videos, cut.values()))
    return tuple(clip_id for clip_id, video in cut.items() if video in trained)


def _overlap(train: ClipTable, test: Sequence[Clip]) -> tuple[str, ...]:
    """Ids of test clips that are trained on: see `key_of`."""
    ids = set(_among(train.column("clip_id"), (clip.clip_id for clip in test)))
    sums = set(_among(train.column("sha256"), (clip.sha256 for clip in test if clip.sha256)))
    return tuple(c.clip_id for c in test if c.clip_id in ids or c.sha256 in sums)


def _among(column: pa.Array, values: Iterable[str]) -> list[str]:
    """The values of a column that are among some others."""
    wanted = pa.array(sorted(set(values)), pa.string())
    found: list[str] = column.filter(pc.is_in(column, value_set=wanted)).to_pylist()
    return found


def _read(names: Iterable[str], key: str, config: DataConfig, progress: Progress) -> ClipTable:
    tables = list[ClipTable]()
    for name in names:
        folder = absolute(name, f"data.{key}")
        own = read_store(folder)
        if own is None and not folder.is_dir():
            raise UserError(f"there is no data set {folder} (data.{key})")
        if own is None:
            own = _cut_folder(folder, config, progress)
        if config.degradation is not None:
            own = ClipTable.of([_rescaled(clip, config.scale) for clip in own])
        scales = own.column("scale").to_numpy()
        if (others := scales[scales != config.scale]).size:
            raise UserError(
                f"{folder} was prepared with --scale {others[0]}, and data.scale = {config.scale}; "
                "make them equal"
            )
        tables.append(own)
    return ClipTable.joined(tables)


def _rescaled(clip: Clip, scale: int) -> Clip:
    """A clip whose own low-resolution frames are of another scale, and which gets others."""
    if clip.scale == scale or clip.height % scale or clip.width % scale:
        return clip
    return replace(clip, scale=scale, degradation="")


def _cut_folder(folder: Path, config: DataConfig, progress: Progress) -> ClipTable:
    """The clips of a folder of videos or pictures, from the cache if its files are unchanged."""
    tasks, notes = recordings(folder, clip_frames=config.clip_frames)
    state = json.dumps([config.scale, *map(fingerprint, tasks)])
    key = hashlib.sha256(state.encode()).hexdigest()[:16]
    settings = {"directory": str(folder), "clip_frames": config.clip_frames}
    request = Request(
        _cache(config) / f"{folder.name}-{key}", "folder", config.scale, "bi", settings
    )
    name = f"{folder.name} (not prepared; this takes a while, once)"
    store = make_store(
        request,
        tasks,
        notes,
        progress=lambda done, total: progress(name, int(done), total),
        wait=True,
    )
    return store.clips


def _cache(config: DataConfig) -> Path:
    return absolute(config.cache_dir, "data.cache_dir") if config.cache_dir else default_cache_dir()


def keys_of(clips: Iterable[Clip]) -> set[str]:
    """All keys of clips."""
    return set().union(*map(key_of, clips))


def require_no_overlap(overlap: Sequence[str], config: DataConfig) -> None:
    """Raise UserError if test clips are also trained on, unless `data.allow_overlap` is set.

    Args:
        overlap: ids of such test clips.
        config: the `data` section.
    """
    if overlap and not config.allow_overlap:
        way_out = "leave them out there" if config.owners else "name them in data.held_out"
        raise UserError(
            f"clients would train on {len(overlap)} of the test clips ({_some(overlap)}), by their "
            f"ids or their content; {way_out}, or set data.allow_overlap=true, which every record "
            "then shows"
        )


def key_of(clip: Clip) -> set[str]:
    """Two clips are the same if they share one of these: their id, or the sum of their content."""
    return {f"id {clip.clip_id}", *([clip.sha256] if clip.sha256 else [])}


def _require_own_ids(clips: ClipTable, use: str) -> None:
    """Raise UserError if two clips have the same id, because records name clips by their ids."""
    ids = clips.column("clip_id")
    if pc.count_distinct(ids).as_py() == len(ids):
        return
    seen = dict[str, int]()
    for index, clip_id in enumerate(ids.to_pylist()):
        if clip_id in seen:
            folders = (clips[i].folder for i in (seen[clip_id], index))
            raise UserError(
                f"there are two clips {clip_id} to {use}, in {' and '.join(dict.fromkeys(folders))}"
                "; rename the video or folder that one of them is made of, or leave it out"
            )
        seen[clip_id] = index


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
