"""Feeds loggers, each in a thread of its own: none of them can end, change or hold up a run."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from queue import Full, Queue
from typing import Literal, Protocol

Status = Literal["finished", "failed", "interrupted"]
# Rounds that may wait for a logger that does not answer; later ones are taken from the tables when
# the run is resumed.
_MAX_WAITING = 1000
# Seconds that the end of a run waits for its loggers: pictures are sent only if it has finished.
_FINISH_S, _STOP_S = 60.0, 15.0
_MAX_REASON = 300


@dataclass(frozen=True)
class Round:
    """What is logged of a round."""

    round_idx: int
    values: Mapping[str, float]
    """By name, such as `train/loss`; all are finite."""


@dataclass(frozen=True)
class Picture:
    """A frame that the run has kept."""

    clip: str
    kind: str
    """`lq`, `bicubic`, `sr` or `gt`."""
    path: Path


@dataclass(frozen=True)
class Ending:
    """How a run has ended, and what it leaves."""

    status: Status
    round_idx: int
    """Its last round."""
    scores: Sequence[Mapping[str, str | float]] = ()
    """A row per test set, with equal columns."""
    pictures: Sequence[Picture] = ()
    tables: Sequence[Path] = ()


Past = Callable[[int], Iterable[Round]]
"""The recorded rounds after one, which an earlier process may not have logged."""


class Logger(Protocol):
    """Where rounds go. Its methods may raise anything, and may take any time."""

    last_round: int
    """The last round that it has, from earlier processes too; -1 before the first."""

    def log(self, finished: Round) -> None:
        """Add a round, and set `last_round`."""

    def end(self, ending: Ending) -> None:
        """Add what the run leaves, and close."""


@dataclass(frozen=True)
class Trouble:
    """A logger's failure, of which a person is told."""

    message: str
    final: bool
    """Whether rounds are missing there now; otherwise they are sent again with the next one."""


class Feed:
    """Hands rounds to one logger.

    If the logger fails, the rounds are kept and it is opened anew for the next one. What it has
    then is asked for, so that no round is logged twice.

    Args:
        name: the logger's name.
        make: opens it, or opens it again where an earlier process has stopped. It is given the
            event that is set when nothing may be sent any more.
    """

    def __init__(self, name: str, make: Callable[[threading.Event], Logger]) -> None:
        self.name, self._make = name, make
        self._past: Past = lambda _: ()
        self._logger: Logger | None = None
        self._inbox = Queue[Round | Callable[[], Ending] | None](_MAX_WAITING)
        self._waiting = deque[Round]()
        self._troubles = deque[Trouble]()
        self._warned = self._lost = False
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"fedvsr-{name}", daemon=True)

    def start(self, past: Past) -> None:
        """Open the logger, and send the rounds of `past` that it lacks."""
        self._past = past
        self._inbox.put_nowait(None)
        self._thread.start()

    def add(self, finished: Round) -> None:
        """Send a round, soon."""
        self._put(finished)

    def end(self, ending: Callable[[], Ending]) -> None:
        """Send what the run leaves, soon."""
        self._put(ending)

    def wait(self, limit_s: float) -> None:
        """Wait until all is sent, at most `limit_s`."""
        if self._thread.ident is None:
            return
        self._thread.join(max(0.0, limit_s))
        if self._thread.is_alive():
            # A process that resumes the run logs what is missing; nothing must come after that.
            self._given_up.set()
            self._warn("has not taken everything in time", final=True)

    def troubles(self) -> list[Trouble]:
        """Its failures since this was last asked."""
        return [self._troubles.popleft() for _ in range(len(self._troubles))]

    def _put(self, item: Round | Callable[[], Ending]) -> None:
        try:
            self._inbox.put_nowait(item)
        except Full:
            self._warn("does not answer", final=True)

    def _work(self) -> None:
        over = False
        while not over:
            item = self._inbox.get()
            ending = None if isinstance(item, Round) else item
            if isinstance(item, Round):
                self._waiting.append(item)
            over = ending is not None
            try:
                logger = self._opened()
                while self._waiting and not self._given_up.is_set():
                    if self._waiting[0].round_idx > logger.last_round:
                        logger.log(self._waiting[0])
                    self._waiting.popleft()
                if ending is not None and not self._given_up.is_set():
                    logger.end(ending())
            except Exception as error:
                # Another package, and perhaps a server: whatever it raises must not end the run.
                self._logger = None
                lines = [line.strip() for line in str(error).splitlines() if line.strip()]
                reason = f": {lines[0][:_MAX_REASON]}" if lines else ""
                self._warn(f"{type(error).__name__}{reason}", final=over)

    def _opened(self) -> Logger:
        """The logger, which then has every round that was recorded before this process."""
        if self._logger is None:
            logger = self._make(self._given_up)
            for finished in self._past(logger.last_round):
                if self._given_up.is_set():
                    break
                logger.log(finished)
            self._logger = logger
        return self._logger

    def _warn(self, what: str, final: bool) -> None:
        """Note a failure: the first one, and the first after which something is missing."""
        if not self._warned or (final and not self._lost):
            self._troubles.append(Trouble(f"{self.name} {what}", final))
        self._warned, self._lost = True, self._lost or final


class Loggers:
    """The loggers of one run."""

    def __init__(self, feeds: Sequence[Feed]) -> None:
        self._feeds = feeds

    def start(self, past: Past) -> None:
        """Open them, and send the rounds of `past` that they lack."""
        for feed in self._feeds:
            feed.start(past)

    def add(self, finished: Round) -> None:
        """Send a round, soon."""
        for feed in self._feeds:
            feed.add(finished)

    def end(self, status: Status, ending: Callable[[], Ending]) -> None:
        """Send what the run leaves, and wait for that, within a limit.

        Args:
            status: how the run has ended; without having finished, the wait is short.
            ending: what it leaves; called in the loggers' threads.
        """
        deadline = time.monotonic() + (_FINISH_S if status == "finished" else _STOP_S)
        for feed in self._feeds:
            feed.end(ending)
        for feed in self._feeds:
            feed.wait(deadline - time.monotonic())

    def troubles(self) -> list[Trouble]:
        """Their failures since this was last asked."""
        return [trouble for feed in self._feeds for trouble in feed.troubles()]
