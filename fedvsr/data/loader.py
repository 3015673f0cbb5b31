"""Read ahead: threads read the next results while the current one is used."""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")

# Seconds to wait for a thread before its work is done without it.
_STUCK_S = 30.0


class Loader(Generic[Job, Result]):
    """Iterates over the results of `read` for all jobs, in their order, and measures the waiting.

    At most `num_workers` results are held in advance, which bounds the memory; with 0 workers, each
    result is read when it is requested. Threads are enough, because copying frames lets other
    threads run. An error in `read` is raised when its result is requested. Leaving the context ends
    the threads, also after an error.

    A thread that does not start, or is stuck, costs time and no result: this thread then reads.

    Args:
        read: reads a result; may be called twice for a job.
        jobs: what to read.
        num_workers: number of threads.
        stuck_s: seconds to wait for a thread.
    """

    def __init__(
        self,
        read: Callable[[Job], Result],
        jobs: Iterable[Job],
        num_workers: int,
        stuck_s: float = _STUCK_S,
    ) -> None:
        self._read, self._jobs = read, jobs
        self._num_workers, self._stuck_s = num_workers, stuck_s
        self._work = SimpleQueue[tuple[Job, Future[Result]] | None]()
        self._ended = SimpleQueue[None]()
        self._num_ended = 0
        self.wait_s = 0.0
        """Wall-clock seconds that the iteration has waited for results so far."""

    @property
    def num_threads(self) -> int:
        """Threads that have not ended."""
        with suppress(Empty):
            while True:
                self._ended.get_nowait()
                self._num_ended += 1
        return self._num_workers - self._num_ended

    def __enter__(self) -> Loader[Job, Result]:
        """Start the threads."""
        for _ in range(self._num_workers):
            # Not `threading.Thread`: its `start` waits for the thread without a limit.
            _thread.start_new_thread(self._run, ())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads after the results that they are reading, at most one each."""
        with suppress(Empty):
            while True:
                self._work.get_nowait()
        for _ in range(self._num_workers):
            self._work.put(None)
        deadline = time.monotonic() + self._stuck_s
        with suppress(Empty):
            while self.num_threads:
                self._ended.get(timeout=max(0.0, deadline - time.monotonic()))
                self._num_ended += 1

    def __iter__(self) -> Iterator[Result]:
        """Yield the results; iterate once only, inside the context."""
        results = self._ahead() if self._num_workers else map(self._read, self._jobs)
        while True:
            asked = time.perf_counter()
            try:
                result = next(results)
            except StopIteration:
                return
            finally:
                self.wait_s += time.perf_counter() - asked
            yield result

    def _ahead(self) -> Iterator[Result]:
        pending = deque[tuple[Job, Future[Result]]]()
        for job in self._jobs:
            pending.append((job, Future()))
            self._work.put(pending[-1])
            if len(pending) > self._num_workers:
                yield self._result(*pending.popleft())
        while pending:
            yield self._result(*pending.popleft())

    def _result(self, job: Job, future: Future[Result]) -> Result:
        wait([future], timeout=self._stuck_s)
        return future.result() if future.done() else self._read(job)

    def _run(self) -> None:
        """In a thread: read until told to end."""
        try:
            while (work := self._work.get()) is not None:
                job, future = work
                try:
                    future.set_result(self._read(job))
                except BaseException as error:
                    # Raised again where the result is taken, whatever it is.
                    future.set_exception(error)
                # Not to be held while this waits.
                del work, job, future
        finally:
            self._ended.put(None)
