"""A job's log as it grows, from a server that may stop answering."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any

from fedvsr.limits import ANSWER_S

QUIET_S = ANSWER_S
"""Seconds without any text after which the job's state is asked for."""
_CANCEL_S = 5.0


class LogStoppedError(RuntimeError):
    """The job has ended, but the connection neither brings the rest of its log nor closes."""


def chunks(stream: AsyncGenerator[str, None], has_ended: Callable[[], bool]) -> Iterator[str]:
    """The pieces of a log, in order. A job may print nothing for hours; only a server may not.

    Args:
        stream: what `JobSubmissionClient.tail_job_logs` returns; it would wait for ever.
        has_ended: asks the server, on another connection, whether the job has ended. It raises an
            exception if the server does not answer.

    Raises:
        LogStoppedError: the job ended, and nothing has come for `QUIET_S` since that was known.
    """
    loop = asyncio.new_event_loop()
    try:
        while (text := _next(loop, stream, has_ended)) is not None:
            yield text
    finally:
        _wait(loop, loop.create_task(_close(stream)), _CANCEL_S)
        loop.close()


async def _close(stream: AsyncGenerator[str, None]) -> None:
    await stream.aclose()


def _next(
    loop: asyncio.AbstractEventLoop,
    stream: AsyncGenerator[str, None],
    has_ended: Callable[[], bool],
) -> str | None:
    """The next piece of a log; None after the last."""

    async def next_piece() -> str | None:
        return await anext(stream, None)

    piece, ended = loop.create_task(next_piece()), False
    try:
        while not _wait(loop, piece, QUIET_S):
            if ended:
                raise LogStoppedError("the job has ended, but its log stopped before the end")
            ended = has_ended()
    except BaseException:
        # Also an interruption: nothing may be left that reads from the stream.
        piece.cancel()
        _wait(loop, piece, _CANCEL_S)
        raise
    return piece.result()


def _wait(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any], limit_s: float) -> bool:
    """Run the loop until a task is done, for at most `limit_s` seconds; returns whether it is.

    Not by `asyncio.wait`: Ctrl-C between that call and its first step leaves a coroutine that was
    never awaited, of which Python warns.
    """

    def stop(_: object = None) -> None:
        loop.stop()

    timer = loop.call_later(limit_s, stop)
    task.add_done_callback(stop)
    try:
        loop.run_forever()
    finally:
        timer.cancel()
        task.remove_done_callback(stop)
    return task.done()
