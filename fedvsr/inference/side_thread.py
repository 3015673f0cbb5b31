"""A thread that works through calls in their order, beside the thread that makes them."""

from __future__ import annotations

import _thread
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Generic, TypeVar

from fedvsr.errors import UserError

T = TypeVar("T")
_END = object()
# Seconds without an end of a call after which it counts as hung: a disk or an encoder that does
# nothing any more. The slowest encoders take seconds for a frame.
_STUCK_S = 600.0
# And for the call that is under way when the others are dropped.
_LEAVE_S = 30.0


class SideThread:
    """Makes calls one after the other in a thread of its own, while the caller does other work.

    Leaving the context drops calls that have not begun, and waits for the one that has.

    Args:
        what: what the calls do, for the message if one of them hangs.
        stuck_s: seconds after which a call counts as hung.
    """

    def __init__(self, what: str, stuck_s: float = _STUCK_S) -> None:
        self._what, self._stuck_s = what, stuck_s
        self._work = SimpleQueue[tuple[Callable[[], object], Future[object]] | None]()
        self._has_ended = Future[None]()
        self.waited_s = 0.0
        """Seconds for which the caller has waited for results."""
        self.num_waits = 0
        """Results for which the caller has waited."""

    def __enter__(self) -> SideThread:
        """Start the thread."""
        # Not `threading.Thread`, for which Python waits when it ends, even if it hangs.
        _thread.start_new_thread(self._run, ())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        """End the thread."""
        try:
            while True:
                self._work.get_nowait()
        except Empty:
            self._work.put(None)
        wait([self._has_ended], timeout=min(self._stuck_s, _LEAVE_S))

    def call(self, function: Callable[..., T], *args: object) -> Future[T]:
        """Let the thread call a function after all calls before."""
        future = Future[T]()
        # The queue holds futures of any type, and only `function` fills this one.
        self._work.put((lambda: function(*args), future))  # type: ignore[arg-type]
        return future

    def result(self, future: Future[T]) -> T:
        """Wait for a call; returns what it returned, or raises what it raised.

        Raises:
            UserError: the thread hangs.
        """
        if not future.done():
            started = time.perf_counter()
            wait([future], timeout=self._stuck_s)
            self.waited_s += time.perf_counter() - started
            self.num_waits += 1
        if not future.done():
            raise UserError(f"{self._what} has made no progress for {self._stuck_s:g} s")
        return future.result()

    def _run(self) -> None:
        try:
            while (work := self._work.get()) is not None:
                function, future = work
                try:
                    future.set_result(function())
                except BaseException as error:
                    # Raised again where the result is taken, whatever it is.
                    future.set_exception(error)
                # Not to be held while this waits.
                del work, function, future
        finally:
            self._has_ended.set_result(None)


class ReadAhead(Generic[T]):
    """Iterates over what a generator yields, which a thread reads in advance.

    Args:
        items: the generator; only the thread uses it from now on.
        thread: the thread.
        most: items that are read in advance.
    """

    def __init__(self, items: Iterator[T], thread: SideThread, most: int) -> None:
        self._items, self._thread, self._most = items, thread, most

    def __iter__(self) -> Iterator[T]:
        """Yield the items; iterate once only."""
        calls = deque(self._call() for _ in range(self._most))
        while (item := self._thread.result(calls.popleft())) is not _END:
            calls.append(self._call())
            # It is a T: what `next` gives, or `_END`, which no generator can yield.
            yield item  # type: ignore[misc]

    def _call(self) -> Future[object]:
        return self._thread.call(next, self._items, _END)


class WriteBehind:
    """Passes frames on to a function, which a thread calls later.

    Args:
        write: what a frame is passed to.
        thread: the thread.
        most: frames that wait to be written.
    """

    def __init__(self, write: Callable[..., object], thread: SideThread, most: int) -> None:
        self._write, self._thread, self._most = write, thread, most
        self._calls = deque[Future[object]]()

    def add(self, *frame: object) -> None:
        """Add a frame; waits if too many wait already.

        Raises:
            Exception: what the function has raised for an earlier frame.
        """
        while self._calls and (len(self._calls) >= self._most or self._calls[0].done()):
            self._thread.result(self._calls.popleft())
        self._calls.append(self._thread.call(self._write, *frame))

    def finish(self) -> None:
        """Wait until all frames are written."""
        while self._calls:
            self._thread.result(self._calls.popleft())
