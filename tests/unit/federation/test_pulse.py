"""When a process counts as hung; `tests/integration/test_hangs.py` stops real ones."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from fedvsr.federation import pulse
from fedvsr.federation.pulse import Pulse, SilentError


class Actor:
    """An actor that answers when the test says so."""

    def __init__(self) -> None:
        self.calls = list[Future[None]]()
        self.ping = self

    def options(self, **_: Any) -> Actor:
        return self

    def remote(self) -> Actor:
        self.calls.append(Future())
        return self

    def future(self) -> Future[None]:
        return self.calls[-1]


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    clock = [0.0]
    monkeypatch.setattr("fedvsr.federation.pulse.time.monotonic", lambda: clock[0])
    return clock


def checked(actor: Pulse, now: list[float], seconds: float) -> None:
    for _ in range(int(seconds)):
        now[0] += 1.0
        actor.check()


def test_a_process_that_does_not_answer_is_hung(now: list[float]) -> None:
    actor = Actor()
    watched = Pulse(actor)
    checked(watched, now, pulse.START_S)
    actor.calls[-1].set_result(None)
    checked(watched, now, 60)
    assert len(actor.calls) == 2, "asked again, once"
    with pytest.raises(SilentError, match="has not answered for 60 s"):
        checked(watched, now, 2)


def test_a_process_that_answers_is_not_hung(now: list[float]) -> None:
    actor = Actor()
    watched = Pulse(actor)
    for _ in range(50):
        actor.calls[-1].set_result(None)
        checked(watched, now, 50)


def test_a_process_that_never_starts_is_hung(now: list[float]) -> None:
    watched = Pulse(Actor())
    with pytest.raises(SilentError, match="has not started within 300 s"):
        checked(watched, now, pulse.START_S + 1)


def test_the_time_in_which_the_watcher_stood_still_does_not_count(now: list[float]) -> None:
    actor = Actor()
    watched = Pulse(actor)
    actor.calls[-1].set_result(None)
    checked(watched, now, 6)
    now[0] += 3600
    watched.check()
