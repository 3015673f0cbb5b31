"""Limits on waiting for a Ray cluster that may be gone: Ray itself waits for ever, or nearly."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import TypeVar

from fedvsr.errors import UserError

ANSWER_S = 30.0
"""Seconds without any answer after which a cluster counts as gone."""
FETCH_S = 300.0
"""Seconds within which a result that is ready must come from its node."""

T = TypeVar("T")


class ClusterGoneError(UserError):
    """The connected Ray cluster is gone. Ray cannot be used in this process any more.

    Calls into Ray may now block, or end the process without a word, also those that Ray makes when
    Python ends: the command line leaves without them.
    """


def within(limit_s: float, call: Callable[[], T]) -> T:
    """The result of a call that may never return. It is made in a thread, which is then left.

    Raises:
        TimeoutError: it has not returned within the limit.
    """
    outcomes = SimpleQueue[tuple[T | None, BaseException | None]]()

    def make() -> None:
        try:
            outcomes.put((call(), None))
        except BaseException as error:
            # Raised again by the thread that waits, whatever it is.
            outcomes.put((None, error))

    threading.Thread(target=make, daemon=True).start()
    try:
        result, error = outcomes.get(timeout=limit_s)
    except Empty:
        raise TimeoutError(f"no answer within {limit_s:g} s") from None
    if error is not None:
        raise error
    return result  # type: ignore[return-value]
