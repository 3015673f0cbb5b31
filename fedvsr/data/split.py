"""Split clips into those that clients train on and those that are held out for scoring."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path

from fedvsr.data.client_clips import ClientClips, ClipTable
from fedvsr.data.clips import Clip, default_cache_dir, read_store
from fedvsr.data.config import REDS4, DataConfig, is_named, video_of
from fedvsr.data.degrade_config import Degradation, pipelines
from fedvsr.data.degraded import deal as deal_degradations
from fedvsr.data.degraded import degraded
from fedvsr.data.partition import deal
from fedvsr.data.prepare import prepare as make_store
from fedvsr.data.recordings import fingerprint
from fedvsr.data.request import Request
from fedvsr.data.sources.folder import recordings
from fedvsr.data.testsets import HELD_OUT, folder_names, name_clips
from fedvsr.data.videos import Progress, absolute, clips_of, resolve
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean


@dataclass(frozen=True)
class Split:
    """The clips of a run. Those that are trained on become tables."""

    train: Sequence[Clip]
    """The training clips of all clients."""
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

    def __post_init__(self) -> None:
        """Make tables of clips that there may be a million of."""
        object.__setattr__(self, "train", ClipTable.of(self.train))
        object.__setattr__(self, "clients", ClientClips.of(self.clients))

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
    _require_own_ids(test, "score on")
    test_sets = dict[str, str]()
    for name, clips in sets.items():
        test_sets |= name_clips(name, (clip.clip_id for clip in clips))
    train = _apart(train, test, config.gap_clips)
    train = sorted(train, key=lambda clip: clip.clip_id) if config.max_train_clips else train
    train = train[: config.max_train_clips]
    train_keys = keys_of(train)
    overlap = tuple(clip.clip_id for clip in test if key_of(clip) & train_keys)
    require_no_overlap(overlap, config)
    dealt = [] if config.owners else deal_as(config, train, config.num_clients, seed)
    held = {clip for own in dealt for clip in own}
    trained = {_video(clip) for clip in held if clip.cut}
    same_video = tuple(clip.clip_id for clip in test if clip.cut and _video(clip) in trained)
    train = [clip for clip in train if clip in held]
    if config.degradation is not None:
        before = [clip for own in dealt for clip in own]
        dealt, test = _degraded(config, config.degradation, seed, dealt, test, progress)
        now = dict(zip(before, chain.from_iterable(dealt), strict=True))
        train = [now[clip] for clip in train]
    return Split(
        tuple(train),
        tuple(dealt),
        tuple(test),
        overlap,
        same_video,
        test_sets,
    )


def deal_as(
    config: DataConfig,
    clips: Sequence[Clip],
    num_clients: int,
    seed: int,
    setting: str = "data.num_clients",
) -> list[tuple[Clip, ...]]:
    """Deal clips to clients as the `data` section says; see `deal`."""
    return deal(
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
    dealt: Sequence[tuple[Clip, ...]],
    test: Sequence[Clip],
    progress: Progress,
) -> tuple[list[tuple[Clip, ...]], list[Clip]]:
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
    remaining = iter(clips)
    return [tuple(islice(remaining, len(own))) for own in dealt], list(remaining)


# The test clips of each data set, by its name.
_Sets = dict[str, list[Clip]]


def _of_videos(config: DataConfig, progress: Progress) -> tuple[list[Clip], _Sets]:
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
    return train, {HELD_OUT: test}


def _of_data_sets(config: DataConfig, progress: Progress) -> tuple[list[Clip], _Sets]:
    train = _read(config.train, "train", config, progress)
    sets = _Sets()
    for name, folder in zip(folder_names(config.test), config.test, strict=True):
        sets.setdefault(name, []).extend(_read([folder], "test", config, progress))
    wanted = list(REDS4) if config.held_out == "reds4" else list(config.held_out)
    ids = [clip.clip_id for clip in train]
    missing = [
        name for name in sorted(wanted) if not any(is_named(clip_id, name) for clip_id in ids)
    ]
    if missing:
        raise UserError(
            f"data.held_out names clips that data.train does not have: {_some(missing)}"
            + did_you_mean(missing[0], [*ids, *(video_of(clip_id)[0] for clip_id in ids)])
        )
    chosen = {clip_id for clip_id in ids if any(is_named(clip_id, name) for name in wanted)}
    held_out = [clip for clip in train if clip.clip_id in chosen]
    return [clip for clip in train if clip.clip_id not in chosen], {HELD_OUT: held_out, **sets}


def _apart(train: Sequence[Clip], test: Iterable[Clip], gap: int) -> list[Clip]:
    """Training clips without those within `gap` clips of a test clip of the same video."""
    near = {
        (_video(clip), video_of(clip.clip_id)[1] + step)
        for clip in test
        if clip.cut
        for step in range(-gap, gap + 1)
        if step
    }
    kept = [c for c in train if not (c.cut and (_video(c), video_of(c.clip_id)[1]) in near)]
    if train and not kept:
        raise UserError(
            f"data.gap_clips = {gap} leaves no clip to train on; lower it, or hold out fewer clips"
        )
    return kept


def _video(clip: Clip) -> tuple[str, str]:
    """The recording of a clip: its store and its name."""
    return clip.folder, video_of(clip.clip_id)[0]


def _read(names: Iterable[str], key: str, config: DataConfig, progress: Progress) -> list[Clip]:
    clips = list[Clip]()
    for name in names:
        folder = absolute(name, f"data.{key}")
        own = read_store(folder)
        if own is None and not folder.is_dir():
            raise UserError(f"there is no data set {folder} (data.{key})")
        if own is None:
            own = _cut_folder(folder, config, progress)
        if config.degradation is not None:
            own = [_rescaled(clip, config.scale) for clip in own]
        other = next((clip.scale for clip in own if clip.scale != config.scale), None)
        if other is not None:
            raise UserError(
                f"{folder} was prepared with --scale {other}, and data.scale = {config.scale}; "
                "make them equal"
            )
        clips += own
    return clips


def _rescaled(clip: Clip, scale: int) -> Clip:
    """A clip whose own low-resolution frames are of another scale, and which gets others."""
    if clip.scale == scale or clip.height % scale or clip.width % scale:
        return clip
    return replace(clip, scale=scale, degradation="")


def _cut_folder(folder: Path, config: DataConfig, progress: Progress) -> list[Clip]:
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
    return list(store.clips)


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


def _require_own_ids(clips: Iterable[Clip], use: str) -> None:
    """Raise UserError if two clips have the same id, because records name clips by their ids."""
    seen = dict[str, Clip]()
    for clip in clips:
        if clip.clip_id in seen:
            places = " and ".join(dict.fromkeys((seen[clip.clip_id].folder, clip.folder)))
            raise UserError(
                f"there are two clips {clip.clip_id} to {use}, in {places}; rename the video or "
                "folder that one of them is made of, or leave it out"
            )
        seen[clip.clip_id] = clip


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
