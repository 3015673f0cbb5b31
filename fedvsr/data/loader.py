"""Read ahead: threads read the next results while the current one is used."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class Loader(Generic[Job, Result]):
    """Iterates over the results of `read` for all jobs, in their order, and measures the waiting.

    At most `num_workers` results are held in advance, which bounds the memory; with 0 workers, each
    result is read when it is requested. Threads are enough, because copying frames lets other
    threads run. An error in `read` is raised when its result is requested. Leaving the context ends
    the threads, also after an error.
    """

    def __init__(
        self, read: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
    ) -> None:
        self._read, self._jobs, self._num_workers = read, jobs, num_workers
        self._pool: ThreadPoolExecutor | None = None
        self.wait_s = 0.0
        """Wall-clock seconds that the iteration has waited for results so far."""

    def __enter__(self) -> Loader[Job, Result]:
        """Start the threads."""
        if self._num_workers:
            self._pool = ThreadPoolExecutor(self._num_workers, "fedvsr-loader")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the threads after the results that they are reading, at most one each."""
        if self._pool:
            self._pool.shutdown()

    def __iter__(self) -> Iterator[Result]:
        """Yield the results; iterate once only, inside the context."""
        results = self._ahead() if self._pool else map(self._read, self._jobs)
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
        assert self._pool
        pending = deque[Future[Result]]()
        for job in self._jobs:
            pending.append(self._pool.submit(self._read, job))
            if len(pending) > self._num_workers:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
