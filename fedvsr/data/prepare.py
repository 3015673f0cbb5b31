"""Make a clip store of a data set on all cores; a stopped preparation can be resumed.

Finished clips gather in a hidden folder beside the store, `.<name>-partial`, each with a record
that is written last. When all clips are done, the folder is renamed to the store's name, so a store
is complete or missing. The same request resumes from the partial folder.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

import torch
from rich.filesize import decimal

from fedvsr.checked_text import read_json, write_json
from fedvsr.data.clips import Frames, write_clip
from fedvsr.data.recordings import Task, fingerprint, pairs_of, too_short
from fedvsr.data.request import Request, difference, existing
from fedvsr.data.store import INDEX, MANIFEST, Store, open_store, write_manifest
from fedvsr.data.store_lock import locked
from fedvsr.errors import DamagedError, UserError
from fedvsr.files import DISK_FULL

# Called with the number of frames done and the number of all frames.
Progress = Callable[[float, int], None]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_REQUEST = "request.json"
_RECORD = ".done.json"
# Space for headers, records and the manifest.
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class TaskClips:
    """The clips made of a task: their entries for the manifest, and notes."""

    entries: list[dict[str, Any]]
    notes: list[str]


def prepare(
    request: Request,
    tasks: Sequence[Task],
    notes: Iterable[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    wait: bool = False,
) -> Store:
    """Make a store of all tasks' clips, in the order of the tasks.

    Args:
        request: the store; if it exists, it is returned as it is.
        tasks: the recordings to make clips of.
        notes: notes for the manifest.
        workers: clips made at the same time; None: as many as there are cores.
        progress: called after each frame.
        wait: if another process is making the same store, wait for it instead of raising.

    Raises:
        UserError: a recording cannot be read, the disk is too small or full, or `out` is in use.
    """
    store = existing(request)
    if store is not None:
        return store
    if wait and progress is not None:
        # Something to show while another process has the lock.
        progress(0, sum(task.num_frames for task in tasks))
    with workshop(request, workers, progress, wait=wait) as work:
        if work.finished is not None:
            return work.finished
        unfinished = [task for task in tasks if work.find(task) is None]
        work.expect(
            sum(task.num_frames for task in unfinished),
            sum(task.num_bytes(request.scale) for task in unfinished),
        )
        clips = work.each(work.make, tasks)
        return work.finish(clips, notes)


@contextmanager
def workshop(
    request: Request,
    workers: int | None = None,
    progress: Progress | None = None,
    *,
    wait: bool = False,
) -> Iterator[Workshop]:
    """Lock the folder in which the request's clips gather, and yield what makes them.

    After an error or an interruption the finished clips stay in the folder; without finished clips
    the folder is deleted.

    Args:
        request: the store to make.
        workers: see `prepare`.
        progress: see `prepare`.
        wait: see `prepare`.

    Raises:
        UserError: another process is making this store, or another request was left unfinished in
            the folder; also for every error of the file system inside the context.
    """
    out = request.out
    folder = _partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with locked(out, folder, wait):
            folder.mkdir(exist_ok=True)
            try:
                _begin(folder, request)
                yield Workshop(request, folder, workers or num_cores(), progress)
            finally:
                if folder.exists() and not any(folder.glob(f"*{_RECORD}")):
                    shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(explain(error, out)) from error


class Workshop:
    """Makes the clips of one request in its partial folder; see `workshop`."""

    def __init__(
        self, request: Request, folder: Path, workers: int, progress: Progress | None
    ) -> None:
        self.request = request
        self._folder, self._workers, self._progress = folder, workers, progress
        self._stop, self._lock = Event(), Lock()
        self._done = self._total = 0
        self.finished = existing(request)
        """The store, if another process finished it before this one had the lock."""

    def expect(self, num_frames: int, num_bytes: int) -> None:
        """Set the total for progress and check the disk for the clips that are still to be made.

        Raises:
            UserError: the disk has too little space.
        """
        self._total = num_frames
        require_disk(self.request.out, self._folder, num_bytes)

    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """Call a function for every item, on all cores; return the results in the items' order.

        The first error, or an interruption, stops all calls.
        """

        def stopping(item: _Item) -> _Result:
            try:
                return function(item)
            except BaseException:
                # Also an interruption.
                self._stop.set()
                raise

        with ThreadPoolExecutor(self._workers, initializer=one_thread) as pool:
            futures = [pool.submit(stopping, item) for item in items]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
            self._stop.clear()
        done = (future for future in futures if not future.cancelled())
        errors = [error for error in (future.exception() for future in done) if error]
        for error in errors:
            if not isinstance(error, _StoppedError):
                raise error
        return [future.result() for future in futures]

    def has(self, clip_id: str) -> bool:
        """Whether the folder has a record of a finished recording."""
        return (self._folder / f"{clip_id}{_RECORD}").exists()

    def find(self, task: Task) -> TaskClips | None:
        """The clips that were made of a task earlier; None if its files have changed since.

        A damaged record counts as none: the clips are made again.
        """
        with suppress(FileNotFoundError, DamagedError):
            record = read_json(self._folder / f"{task.clip_id}{_RECORD}")
            if record.pop("fingerprint", None) == fingerprint(task):
                return TaskClips(**record)
        return None

    def make(self, task: Task) -> TaskClips:
        """Write a task's clips, or return those that were made earlier.

        Raises:
            UserError: the recording cannot be read, or is too short.
        """
        if self._stop.is_set():
            raise _StoppedError
        if (clips := self.find(task)) is not None:
            return clips
        before = fingerprint(task)
        clips = TaskClips([], [])
        try:
            self._write(task, clips)
        except BaseException:
            # Also an interruption: clips without a record would be made again beside them.
            for entry in clips.entries:
                self._remove(entry)
            raise
        record = {"entries": clips.entries, "notes": clips.notes, "fingerprint": before}
        write_json(self._folder / f"{task.clip_id}{_RECORD}", record)
        return clips

    def _write(self, task: Task, clips: TaskClips) -> None:
        request, num_read = self.request, 0

        def counted() -> Iterator[tuple[Frames, Frames | None]]:
            nonlocal num_read
            for pair in pairs_of(task, request.scale, clips.notes):
                if self._stop.is_set():
                    raise _StoppedError
                num_read += 1
                self._advance(1)
                yield pair

        pairs = counted()
        min_frames = task.cut or (task.num_frames if task.limit else task.min_frames)
        max_clips = task.max_clips if task.cut else 1
        try:
            for number in count() if max_clips is None else range(max_clips):
                clip_id = f"{task.clip_id}-{number:03d}" if task.cut else task.clip_id
                part = islice(pairs, task.cut)
                how = (request.scale, request.degradation)
                entry = write_clip(self._folder, clip_id, task.label, part, *how)
                if entry["num_frames"] < min_frames:
                    self._remove(entry)
                    break
                clips.entries.append(entry)
            if not clips.entries:
                raise too_short(task, num_read)
        except UserError:
            self._advance(-num_read)
            raise

    def _remove(self, entry: dict[str, Any]) -> None:
        for kind in ("gt", "lq"):
            (self._folder / f"{entry['clip_id']}_{kind}.npy").unlink(missing_ok=True)

    def _advance(self, num_frames: int) -> None:
        with self._lock:
            self._done += num_frames
            if self._progress:
                self._progress(self._done, max(self._total, self._done))

    def finish(
        self,
        clips: Iterable[TaskClips],
        notes: Iterable[str] = (),
        rejected: Iterable[dict[str, str]] = (),
    ) -> Store:
        """Write the manifest and rename the folder to the store's name.

        Args:
            clips: the clips of all tasks, in the order of the store.
            notes: more notes for the manifest.
            rejected: videos that were replaced: label, video, reason.
        """
        clips, request = list(clips), self.request
        entries = [entry for part in clips for entry in part.entries]
        notes = [*notes, *(note for part in clips for note in part.notes)]
        files = {f"{entry['clip_id']}_{kind}.npy" for entry in entries for kind in ("gt", "lq")}
        write_manifest(
            self._folder,
            entries,
            request.source,
            request.degradation,
            request.as_dict(),
            notes,
            rejected,
        )
        for path in self._folder.iterdir():
            if path.name not in files and path.name not in (MANIFEST, INDEX):
                path.unlink()
        old = request.out.with_name(f".{request.out.name}-old")
        if request.overwrite and request.out.exists():
            request.out.rename(old)
        self._folder.rename(request.out)
        shutil.rmtree(old, ignore_errors=True)
        store = open_store(request.out)
        assert store is not None
        return store


class _StoppedError(Exception):
    """Another task has failed, or the user has stopped the preparation."""


def require_disk(out: Path, folder: Path, num_bytes: int) -> None:
    """Raise UserError if the disk of an existing folder has too little space for `out`."""
    needed, free = num_bytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{out} needs {decimal(needed)} and its disk has {decimal(free)} free; free some, or "
            "choose another folder (--out, data.cache_dir)"
        )


def num_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def one_thread() -> None:
    """Let torch use one thread: each core makes a clip, so its threads would only compete."""
    torch.set_num_threads(1)


def _partial(out: Path) -> Path:
    """The folder in which the clips of a store gather."""
    return out.with_name(f".{out.name}-partial")


def _begin(folder: Path, request: Request) -> None:
    """Delete leftovers of a killed process, and clips of another request if it may be replaced.

    Raises:
        UserError: the folder holds another request's clips.
    """
    path = folder / _REQUEST
    try:
        settings = read_json(path)
    except FileNotFoundError:
        settings = request.as_dict()
    except DamagedError:
        # What the clips were made with is not known.
        settings = {}
    same = request.makes_the_clips_of(settings)
    if not same and not request.overwrite:
        raise UserError(
            f"{folder} holds an unfinished store with other settings "
            f"({difference(settings, request)}); finish it, or start over with --overwrite"
        )
    for file in folder.iterdir():
        leftover = file.name.startswith(".") and file.name.endswith(".tmp")
        if leftover or not same:
            file.unlink()
    write_json(path, request.as_dict())


def explain(error: OSError, out: Path) -> str:
    """The message for an error of the file system while `out` is made."""
    if error.errno in DISK_FULL:
        return f"no space left on the disk of {out}; free some and retry, finished clips are kept"
    where = error.filename or out
    return f"cannot access {where}: {error.strerror or error}; check its permissions and retry"
