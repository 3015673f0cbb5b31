"""Make a clip store of a data set: on all cores, gone on with after a stop, whole or not there.

Finished clips gather in a hidden folder beside the store, `.<name>-partial`, each with a record
that is written last; the whole is renamed at the end. The same request goes on from there.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from threading import Event, Lock
from typing import Any, TypeVar

import torch

from fedvsr.data.clips import (
    Frames,
    Store,
    open_store,
    write_clip,
    write_manifest,
)
from fedvsr.data.recordings import Task, fingerprint, pairs_of
from fedvsr.data.request import Request, difference, existing
from fedvsr.errors import UserError
from fedvsr.files import DISK_FULL, replacing

# Takes the frames done and the frames in all.
Progress = Callable[[float, int], None]

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_REQUEST = "request.json"
_RECORD = ".done.json"
# Room for headers, records and the manifest.
_SPARE_BYTES = 16 << 20


@dataclass(frozen=True)
class Made:
    """The manifest's entries of a task's clips, and what there is to say of them."""

    entries: list[dict[str, Any]]
    notes: list[str]


def prepare(
    request: Request,
    tasks: Sequence[Task],
    notes: Iterable[str] = (),
    workers: int | None = None,
    progress: Progress | None = None,
) -> Store:
    """Make a store of all tasks' clips, in their order.

    Raises:
        UserError: a recording cannot be read, the disk is too small or full, or `out` is taken.
    """
    store = existing(request)
    if store is not None:
        return store
    with workshop(request, workers, progress) as work:
        left = [task for task in tasks if work.find(task) is None]
        work.expect(
            sum(task.num_frames for task in left),
            sum(task.num_bytes(request.scale) for task in left),
        )
        made = work.each(work.make, tasks)
        return work.finish(made, notes)


@contextmanager
def workshop(
    request: Request, workers: int | None = None, progress: Progress | None = None
) -> Iterator[Workshop]:
    """The folder where the request's clips gather, for this process alone.

    An error or an interruption leaves the finished clips there, or nothing if there are none.

    Raises:
        UserError: another process is at it, or has left another request unfinished; and for
            whatever goes wrong on the disk in the meantime.
    """
    out = request.out
    folder = out.with_name(f".{out.name}-partial")
    try:
        existing(request)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / _REQUEST).open("a+") as file:
            _lock(file.fileno(), out)
            file.seek(0)
            before = file.read()
            _begin(folder, before, request)
            file.truncate(0)
            file.write(json.dumps(request.as_dict()))
            file.flush()
            try:
                yield Workshop(request, folder, workers or num_cores(), progress)
            finally:
                if folder.exists() and not any(folder.glob(f"*{_RECORD}")):
                    shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        raise UserError(explain(error, out, ", the finished clips are kept")) from error


class Workshop:
    """Makes clips in the folder of one request; see `workshop`."""

    def __init__(
        self, request: Request, folder: Path, workers: int, progress: Progress | None
    ) -> None:
        self.request = request
        self._folder, self._workers, self._progress = folder, workers, progress
        self._stop, self._lock = Event(), Lock()
        self._done = self._total = 0

    def expect(self, num_frames: int, num_bytes: int) -> None:
        """Announce what is still to be made.

        Raises:
            UserError: there is not so much room on the disk.
        """
        self._total = num_frames
        require_disk(self.request.out, self._folder, num_bytes)

    def each(self, function: Callable[[_Item], _Result], items: Iterable[_Item]) -> list[_Result]:
        """The function of every item, in their order, computed on all cores.

        The first error, or an interruption, stops all of it.
        """

        def stopping(item: _Item) -> _Result:
            try:
                return function(item)
            except BaseException:
                self._stop.set()
                raise

        with ThreadPoolExecutor(self._workers, initializer=_one_thread) as pool:
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
        """Whether something was made of a recording before."""
        return (self._folder / f"{clip_id}{_RECORD}").exists()

    def find(self, task: Task) -> Made | None:
        """What was made of a task before, unless its files have changed since."""
        with suppress(FileNotFoundError, json.JSONDecodeError):
            record = json.loads((self._folder / f"{task.clip_id}{_RECORD}").read_text())
            if record.pop("fingerprint") == fingerprint(task):
                return Made(**record)
        return None

    def make(self, task: Task) -> Made:
        """Write a task's clips, unless they are there.

        Raises:
            UserError: the recording cannot be read, or is too short.
        """
        if self._stop.is_set():
            raise _StoppedError
        if (made := self.find(task)) is not None:
            return made
        before = fingerprint(task)
        made = Made([], [])
        try:
            self._write(task, made)
        except BaseException:
            for entry in made.entries:
                self._remove(entry)
            raise
        with replacing(self._folder / f"{task.clip_id}{_RECORD}") as aside:
            record = {"entries": made.entries, "notes": made.notes, "fingerprint": before}
            aside.write_text(json.dumps(record))
        return made

    def _write(self, task: Task, made: Made) -> None:
        request, counted = self.request, 0

        def counting() -> Iterator[tuple[Frames, Frames | None]]:
            nonlocal counted
            for pair in pairs_of(task, request.scale, made.notes):
                if self._stop.is_set():
                    raise _StoppedError
                yield pair
                counted += 1
                self._advance(1)

        pairs = counting()
        try:
            for number in range(1 << 30 if task.cut else 1):
                clip_id = f"{task.clip_id}-{number:03d}" if task.cut else task.clip_id
                part = islice(pairs, task.cut)
                how = (request.scale, request.degradation)
                entry = write_clip(self._folder, clip_id, task.label, part, *how)
                wanted = task.cut or (task.num_frames if task.limit else task.min_frames)
                if entry["num_frames"] < wanted:
                    self._remove(entry)
                    break
                made.entries.append(entry)
            if not made.entries:
                raise UserError(
                    f"{task.gt.path} has {_count(counted)}, fewer than the {wanted} asked for; "
                    "remove it, or ask for fewer"
                )
        except UserError:
            self._advance(-counted)
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
        made: Iterable[Made],
        notes: Iterable[str] = (),
        rejected: Iterable[dict[str, str]] = (),
    ) -> Store:
        """Write the manifest and rename the folder to its place.

        Args:
            made: what was made, in the order that the store is to have.
            notes: what else there is to say.
            rejected: the videos that others took the place of: label, video, reason.
        """
        made, request = list(made), self.request
        entries = [entry for each in made for entry in each.entries]
        notes = [*notes, *(note for each in made for note in each.notes)]
        wanted = {f"{entry['clip_id']}_{kind}.npy" for entry in entries for kind in ("gt", "lq")}
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
            if path.name not in wanted and path.name != "manifest.json":
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
    """Another task has failed, or the user has stopped all of it."""


def require_disk(out: Path, folder: Path, num_bytes: int) -> None:
    """Raise UserError if the disk of a folder that is there has no room for so much of `out`."""
    needed, free = num_bytes + _SPARE_BYTES, shutil.disk_usage(folder).free
    if needed > free:
        raise UserError(
            f"{out} needs {gigabytes(needed)}, and its disk has {gigabytes(free)} free; make room, "
            "or have it made elsewhere (--out, data.cache_dir)"
        )


def num_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0))


def gigabytes(num_bytes: float) -> str:
    """E.g. 12.3 GB; of less than a tenth, in MB."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"


def _one_thread() -> None:
    # A clip a core; threads below that would only stand in each other's way.
    torch.set_num_threads(1)


def _count(num_frames: int) -> str:
    return f"{num_frames} frame" if num_frames == 1 else f"{num_frames} frames"


def _lock(descriptor: int, out: Path) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"another process is preparing {out}; wait for it") from None
    except OSError:
        pass  # a file system without locks


def _begin(folder: Path, before: str, request: Request) -> None:
    """Clear what was left by a process that was killed, or by another request."""
    settings = request.as_dict() if not before else {}
    with suppress(json.JSONDecodeError):
        settings = settings or json.loads(before)
    same = request.makes_the_clips_of(settings)
    if not same and not request.overwrite:
        raise UserError(
            f"{folder} holds an unfinished store with other settings "
            f"({difference(settings, request)}); finish it, or begin anew with --overwrite"
        )
    for path in folder.iterdir():
        leftover = path.name.startswith(".") and path.name.endswith(".tmp")
        if (leftover or not same) and path.name != _REQUEST:
            path.unlink()


def explain(error: OSError, out: Path, kept: str = "") -> str:
    """What to tell of an error of the system's while a store is written."""
    if error.errno in DISK_FULL:
        return f"the disk of {out} is full; make room and give the same command again{kept}"
    where = error.filename or out
    return f"{where} cannot be used: {error.strerror or error}; see to it, then try again"
