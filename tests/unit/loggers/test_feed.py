"""A logger that fails, hangs or comes late: the run sees none of it, and rounds are logged once."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

from fedvsr.loggers import feed
from fedvsr.loggers.feed import Ending, Feed, Loggers, Round

LIMIT_S = 10.0


class Tracker:
    """Where rounds arrive, like a server: it stays while loggers are opened and lost."""

    def __init__(self) -> None:
        self.rounds = list[int]()
        self.opened = 0
        self.fails_at = set[int]()
        self.endings = list[Ending]()

    def open(self, _: object = None) -> TrackerLogger:
        self.opened += 1
        return TrackerLogger(self)


class TrackerLogger:
    def __init__(self, tracker: Tracker) -> None:
        self.tracker = tracker
        self.last_round = max(tracker.rounds, default=-1)

    def log(self, finished: Round) -> None:
        if finished.round_idx in self.tracker.fails_at:
            self.tracker.fails_at.remove(finished.round_idx)
            raise ConnectionError("refused\nby the server")
        self.tracker.rounds.append(finished.round_idx)
        self.last_round = finished.round_idx

    def end(self, ending: Ending) -> None:
        self.tracker.endings.append(ending)


def nothing_before(_: int) -> Iterator[Round]:
    return iter(())


def ended(tested: Feed) -> list[tuple[str, bool]]:
    """End a feed, and return its troubles."""
    tested.end(lambda: Ending("finished", 0))
    tested.wait(LIMIT_S)
    return [(trouble.message, trouble.final) for trouble in tested.troubles()]


def test_a_logger_that_fails_is_opened_again_and_has_every_round_once() -> None:
    tracker = Tracker()
    tracker.fails_at = {2}
    tested = Feed("tracker", tracker.open)
    tested.start(nothing_before)
    for round_idx in range(5):
        tested.add(Round(round_idx, {}))
    assert ended(tested) == [("tracker ConnectionError: refused", False)]
    assert tracker.rounds == [0, 1, 2, 3, 4]
    assert tracker.opened == 2
    assert len(tracker.endings) == 1


def test_rounds_that_an_earlier_process_has_not_logged_come_first() -> None:
    tracker = Tracker()
    tracker.rounds = [0, 1]
    tested = Feed("tracker", tracker.open)
    tested.start(lambda after: (Round(i, {}) for i in range(after + 1, 4)))
    # The resumed run repeats rounds that the tracker has.
    for round_idx in range(1, 6):
        tested.add(Round(round_idx, {}))
    assert ended(tested) == []
    assert tracker.rounds == [0, 1, 2, 3, 4, 5]


def test_a_logger_that_never_opens_is_one_warning_and_a_last_word() -> None:
    def refuse(_: object) -> TrackerLogger:
        raise ValueError

    tested = Feed("tracker", refuse)
    tested.start(nothing_before)
    for round_idx in range(5):
        tested.add(Round(round_idx, {}))
    assert ended(tested) == [("tracker ValueError", False), ("tracker ValueError", True)]


def test_a_logger_that_hangs_holds_up_nothing() -> None:
    released, tracker = threading.Event(), Tracker()

    def hang(_: object) -> TrackerLogger:
        released.wait(LIMIT_S)
        return tracker.open()

    tested = Feed("tracker", hang)
    tested.start(nothing_before)
    began = time.monotonic()
    for round_idx in range(feed._MAX_WAITING + 2):
        tested.add(Round(round_idx, {}))
    tested.wait(0.05)
    assert time.monotonic() - began < LIMIT_S / 2
    assert [(t.message, t.final) for t in tested.troubles()] == [("tracker does not answer", True)]
    released.set()


def test_loggers_that_were_never_started_are_not_waited_for() -> None:
    began = time.monotonic()
    Loggers([Feed("tracker", Tracker().open)]).end("failed", lambda: Ending("failed", 0))
    assert time.monotonic() - began < 1.0
