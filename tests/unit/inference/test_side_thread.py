from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fedvsr.errors import UserError
from fedvsr.inference.side_thread import ReadAhead, SideThread, WriteBehind


def test_items_are_read_in_advance_in_order_and_not_too_far() -> None:
    read = list[int]()

    def items() -> Iterator[int]:
        for i in range(20):
            read.append(i)
            yield i

    with SideThread("reading") as thread:
        ahead = iter(ReadAhead(items(), thread, 3))
        for i in range(20):
            assert next(ahead) == i
            # The thread may have to catch up: this waits for all that it was told to read.
            thread.result(thread.call(lambda: None))
            assert read == list(range(min(20, i + 4)))
        assert next(ahead, None) is None


def test_an_error_comes_where_its_item_would() -> None:
    def items() -> Iterator[int]:
        yield 1
        raise UserError("frame 2 is damaged")

    with SideThread("reading") as thread:
        ahead = iter(ReadAhead(items(), thread, 3))
        assert next(ahead) == 1
        with pytest.raises(UserError, match=r"^frame 2 is damaged$"):
            next(ahead)


def test_frames_are_written_by_the_thread_in_order_and_few_wait() -> None:
    written, may_write, names = list[tuple[int, int]](), threading.Event(), set[int]()

    def write(frame: int, at: int) -> None:
        assert may_write.wait(10)
        names.add(threading.get_ident())
        written.append((frame, at))

    with SideThread("writing") as thread:
        behind = WriteBehind(write, thread, 2)
        behind.add(0, 10)
        behind.add(1, 11)
        assert (written, thread.num_waits) == ([], 0), "the caller computes meanwhile"
        may_write.set()
        for i in range(2, 9):
            behind.add(i, 10 + i)
        behind.finish()
    assert written == [(i, 10 + i) for i in range(9)]
    assert threading.get_ident() not in names
    assert len(names) == 1
    assert thread.num_waits <= 9


def test_an_error_of_a_write_ends_the_writing() -> None:
    def write(frame: int) -> None:
        if frame == 1:
            raise OSError("no space left")

    added = list[int]()

    def write_all() -> None:
        with SideThread("writing") as thread:
            behind = WriteBehind(write, thread, 2)
            for i in range(9):
                behind.add(i)
                added.append(i)

    with pytest.raises(OSError, match="no space left"):
        write_all()
    assert len(added) <= 4, "it is noticed soon"


def test_leaving_drops_what_has_not_begun_and_waits_for_what_has() -> None:
    begun, done = threading.Event(), list[int]()

    def slow() -> None:
        begun.set()
        time.sleep(0.1)
        done.append(1)

    def interrupted() -> None:
        with SideThread("writing") as thread:
            thread.call(slow)
            thread.call(done.append, 2)
            assert begun.wait(10)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    time.sleep(0.05)
    assert done == [1]


def test_a_thread_that_hangs_is_an_error() -> None:
    free = threading.Event()
    with (
        pytest.raises(UserError, match=r"^writing v\.mp4 has made no progress for 0\.05 s$"),
        SideThread("writing v.mp4", stuck_s=0.05) as thread,
    ):
        thread.result(thread.call(free.wait, 10))
    free.set()
