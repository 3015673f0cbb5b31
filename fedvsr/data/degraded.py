"""Clips with low-resolution frames of their own: made once by a pipeline, and kept in the cache.

    <cache>/degraded-<key>/<clip>-<content>_lq.npy   the frames; the ground truth stays in its store
    <cache>/degraded-<key>/<clip>-<content>.json     what they were made from and by; written last

The key stands for the pipeline, its seed, the scale and, if it compresses, the codecs' versions.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from fedvsr.checked_text import read_json, write_json
from fedvsr.data.clips import Clip, Frames, checksum, write_frames
from fedvsr.data.degrade_config import READY, Pipeline
from fedvsr.data.prepare import explain, num_cores, one_thread, require_disk
from fedvsr.data.store_lock import locked
from fedvsr.errors import DamagedError, UserError
from fedvsr.seeding import generator

# Raise it when the same steps give other frames.
_STEPS_VERSION = 1
# The packages that decide what a step gives besides this one.
_PACKAGES = {"jpeg": "pillow", "h264": "av", "h265": "av"}
# Called with the number of frames done and the number of all frames.
Progress = Callable[[int, int], None]


def deal(
    clips_of: Sequence[Sequence[Clip]], names: Sequence[str], seed: int, how: str, alpha: float
) -> list[list[str]]:
    """The degradation of each clip of each client.

    Args:
        clips_of: each client's clips.
        names: the degradations.
        seed: seed of all draws.
        how: `client`: one degradation per client, each to as many clients, within one; `dirichlet`:
            each client's shares of them are drawn from Dirichlet(alpha), and its clips by these.
        alpha: concentration of the Dirichlet distribution.
    """
    if how == "client":
        order = generator(seed, "degradation").permutation(len(clips_of)).tolist()
        own = {client_id: names[place % len(names)] for place, client_id in enumerate(order)}
        return [[own[client_id]] * len(clips) for client_id, clips in enumerate(clips_of)]
    dealt = list[list[str]]()
    for client_id, clips in enumerate(clips_of):
        rng = generator(seed, "degradation", client_id)
        shares = rng.dirichlet([alpha] * len(names))
        dealt.append([names[i] for i in rng.choice(len(names), len(clips), p=shares)])
    return dealt


def degraded(
    wanted: Iterable[tuple[Clip, str]],
    pipelines: Mapping[str, Pipeline],
    seed: int,
    cache: Path,
    progress: Progress | None = None,
) -> list[Clip]:
    """Clips as they look under degradations; frames are made on all cores if they are not cached.

    A clip whose store holds just these frames is returned with the store's own.

    Args:
        wanted: clips and, for each, a name in `pipelines`. A clip may occur several times.
        pipelines: the steps of each degradation.
        seed: the root seed of what the pipelines draw.
        cache: the folder of stores.
        progress: called after each frame that is made.

    Raises:
        UserError: a pipeline cannot take a clip's frames, or the cache's disk is full.
    """
    wanted = list(wanted)
    folders = {
        (name, scale): cache / f"degraded-{_key(pipelines[name], seed, scale)}"
        for name, scale in {(name, clip.scale) for clip, name in wanted}
    }
    made = list[Clip]()
    tasks = dict[Path, tuple[Clip, Pipeline]]()
    for clip, name in wanted:
        steps = pipelines[name]
        if steps == READY.get(clip.degradation):
            made.append(replace(clip, degradation=name))
            continue
        content = (clip.sha256 or checksum(clip.gt()))[:12]
        path = folders[name, clip.scale] / f"{clip.clip_id}-{content}_lq.npy"
        made.append(replace(clip, degradation=name, lq_path=str(path)))
        tasks[path] = made[-1], steps
    for folder in dict.fromkeys(path.parent for path in tasks):
        own = {path: task for path, task in tasks.items() if path.parent == folder}
        if missing := _missing(own):
            _make(folder, missing, seed, progress)
    return made


def drawn(clip: Clip) -> list[str]:
    """The steps that made a clip's frames, with the values drawn for it; empty for a store's own.

    Raises:
        UserError: the record in the cache is missing or damaged.
    """
    if not clip.lq_path:
        return []
    path = _record(Path(clip.lq_path))
    try:
        steps = read_json(path)["steps"]
    except (OSError, DamagedError):
        raise UserError(f"{path} is missing or damaged; delete {path.parent}") from None
    return [
        f"{step['step']} " + ", ".join(f"{k} {_short(v)}" for k, v in step.items() if k != "step")
        for step in ({k: v for k, v in step.items() if v is not None} for step in steps)
    ]


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _key(steps: Pipeline, seed: int, scale: int) -> str:
    settings = [step.model_dump(mode="json") for step in steps]
    packages = sorted({_PACKAGES[step.step] for step in steps if step.step in _PACKAGES})
    state = [_STEPS_VERSION, scale, seed, settings, [(name, version(name)) for name in packages]]
    return hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]


def _record(path: Path) -> Path:
    return path.with_name(f"{path.name.removesuffix('_lq.npy')}.json")


def _missing(tasks: Mapping[Path, tuple[Clip, Pipeline]]) -> dict[Path, tuple[Clip, Pipeline]]:
    """The clips whose frames are missing or have changed on disk; all cores compare them."""
    with ThreadPoolExecutor(num_cores()) as pool:
        made = pool.map(_is_made, tasks, (clip for clip, _ in tasks.values()))
        return {
            path: task for (path, task), done in zip(tasks.items(), made, strict=True) if not done
        }


def _is_made(path: Path, clip: Clip) -> bool:
    """Whether frames are there as their record says; a damaged record counts as none."""
    low = clip.height // clip.scale, clip.width // clip.scale
    with suppress(FileNotFoundError, DamagedError):
        record = read_json(_record(path))
        if record["num_bytes"] != path.stat().st_size:
            return False
        with suppress(OSError, ValueError, EOFError):
            # The array's own checksum does not cover its header.
            frames = np.load(path, mmap_mode="r", allow_pickle=False)
            is_whole = frames.dtype == np.uint8 and frames.shape == (clip.num_frames, *low, 3)
            return bool(is_whole and checksum(frames) == record["lq_sha256"])
    return False


def _make(
    folder: Path, tasks: Mapping[Path, tuple[Clip, Pipeline]], seed: int, progress: Progress | None
) -> None:
    """Make the frames of all clips of one folder."""
    total = sum(clip.num_frames for clip, _ in tasks.values())
    if progress is not None:
        # Something to show while another process has the lock.
        progress(0, total)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder, folder, wait=True):
            # Another process may have made them in the meantime.
            missing = _missing(tasks)
            sizes = (c.num_frames * c.height * c.width for c, _ in missing.values())
            scale = next(iter(tasks.values()))[0].scale
            require_disk(folder, folder, 3 * sum(sizes) // scale**2)
            with _Maker(seed, total, progress) as maker:
                maker.make(missing)
    except OSError as error:
        raise UserError(explain(error, folder)) from error


class _Maker:
    """Makes frames on all cores; the first error, or an interruption, stops all of them."""

    def __init__(self, seed: int, total: int, progress: Progress | None) -> None:
        self._seed, self._total, self._progress = seed, total, progress
        self._stop, self._lock, self._done = threading.Event(), threading.Lock(), 0
        self._pool = ThreadPoolExecutor(num_cores(), initializer=one_thread)

    def __enter__(self) -> _Maker:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._pool.shutdown(cancel_futures=True)

    def make(self, tasks: Mapping[Path, tuple[Clip, Pipeline]]) -> None:
        futures = [self._pool.submit(self._clip, path, *task) for path, task in tasks.items()]
        done, _ = wait(futures, return_when=FIRST_EXCEPTION)
        for future in done:
            future.result()

    def _clip(self, path: Path, clip: Clip, steps: Pipeline) -> None:
        # Loaded only if frames are to be made.
        from fedvsr.data.degrade_steps import draw, run_steps

        drawn = draw(steps, self._seed, clip.clip_id)
        frames = run_steps(self._counted(clip), drawn, clip.scale, self._seed, clip.clip_id)
        (num_frames, height, width), sha256 = write_frames(path, frames)
        low = clip.height // clip.scale, clip.width // clip.scale
        if (num_frames, height, width) != (clip.num_frames, *low):
            raise UserError(
                f"data.degradation makes {num_frames} frames of {width} x {height} of clip "
                f"{clip.clip_id}, which has {clip.num_frames} and needs {low[1]} x {low[0]}"
            )
        record = {
            "clip_id": clip.clip_id,
            "gt_sha256": clip.sha256,
            "lq_sha256": sha256,
            "num_bytes": os.path.getsize(path),
            "seed": self._seed,
            "steps": drawn,
        }
        write_json(_record(path), record)

    def _counted(self, clip: Clip) -> Iterator[Frames]:
        for rgb in clip.gt():
            if self._stop.is_set():
                raise _StoppedError
            with self._lock:
                self._done += 1
                if self._progress is not None:
                    self._progress(self._done, self._total)
            yield rgb


class _StoppedError(Exception):
    """Another clip has failed, or the user has stopped the preparation."""
