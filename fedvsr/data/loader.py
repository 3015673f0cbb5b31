"""Reading ahead: what comes next is read by threads while the present is computed with."""

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
    """Results of `read`, in the order of `jobs`, and how long they were waited for.

    At most `num_workers` results are held in advance, so memory depends on nothing else; with none,
    each is read when it is asked for. Threads are enough: copying frames lets other threads run.
    An error in `read` is raised where its result is asked for. Leaving the context, in whatever
    way, ends the threads.
    """

    def __init__(
        self, read: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int
    ) -> None:
        self._read, self._jobs, self._num_workers = read, jobs, num_workers
        self._pool: ThreadPoolExecutor | None = None
        self.wait_s = 0.0
        """Wall seconds that the iteration has waited for results so far."""

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
        """End the threads, once they have finished what they are at: a result each at most."""
        if self._pool:
            self._pool.shutdown()

    def __iter__(self) -> Iterator[Result]:
        """The results. To be gone through once, inside the context."""
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
