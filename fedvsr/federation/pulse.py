"""Whether an actor's process still answers: a process that is stopped is not dead to Ray."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

import ray

from fedvsr.limits import within

CONTROL = "control"
"""Concurrency group of the calls that an actor answers beside its work."""
START_S = 300.0
"""Seconds within which a process must start, which imports torch and may wait for its node."""
SILENT_S = 60.0
"""Seconds without an answer after which a process that has started counts as hung."""
_EVERY_S = 5.0
# The most that counts between two checks: whoever checks may have been stopped too.
_STEP_S = 2.0
_KILL_S = 10.0


class SilentError(TimeoutError):
    """An actor's process does not answer."""


class Pulse:
    """Asks an actor for a sign of life, by its method `ping` in the group `CONTROL`.

    A process that computes answers; one that is stopped, or that its machine has swapped out, does
    not. It must be checked every second or so.

    Args:
        actor: the actor's handle.
    """

    def __init__(self, actor: Any) -> None:
        self._ping = actor.ping.options(concurrency_group=CONTROL)
        self._has_started = False
        self._checked = time.monotonic()
        self._send()

    def check(self) -> None:
        """Look whether it has answered.

        Raises:
            SilentError: it has not for too long.
        """
        now = time.monotonic()
        self._waited_s += min(now - self._checked, _STEP_S)
        self._checked = now
        # An actor that has died answers by an error; the calls that wait for it say more.
        if self._answer.done():
            self._has_started = True
            if now - self._sent >= _EVERY_S:
                self._send()
        elif self._has_started and self._waited_s > SILENT_S:
            raise SilentError(
                f"its process has not answered for {SILENT_S:g} s: it is stopped, or its machine "
                "is overloaded"
            )
        elif self._waited_s > START_S:
            raise SilentError(f"its process has not started within {START_S:g} s")

    def _send(self) -> None:
        self._sent, self._waited_s = time.monotonic(), 0.0
        # A future: asking Ray about a reference may use a raylet that has died.
        self._answer = self._ping.remote().future()


def end(actor: Any) -> None:
    """End an actor's process; a cluster that is gone cannot, and its processes end with it."""
    with suppress(TimeoutError):
        within(_KILL_S, lambda: ray.kill(actor))
