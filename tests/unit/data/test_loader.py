from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from fedvsr.data.loader import Loader


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_results_keep_the_order_of_the_jobs(num_workers: int) -> None:
    def square(n: int) -> int:
        time.sleep(0.002 * (n % 3))  # Later jobs may end earlier.
        return n * n

    with Loader(square, range(12), num_workers) as loader:
        assert list(loader) == [n * n for n in range(12)]
    assert loader.num_threads == 0


@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_at_most_num_workers_results_are_read_ahead(num_workers: int) -> None:
    started = list[int]()

    def jobs() -> Iterator[int]:
        for n in range(100):
            started.append(n)
            yield n

    with Loader(str, jobs(), num_workers) as loader:
        results = iter(loader)
        for taken in range(1, 6):
            next(results)
            assert len(started) == taken + num_workers


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("kind", [ZeroDivisionError, KeyboardInterrupt])
def test_an_error_in_reading_is_raised_unchanged(
    num_workers: int, kind: type[BaseException]
) -> None:
    def read(n: int) -> int:
        if n == 3:
            raise kind("here")
        return n

    seen = []
    with pytest.raises(kind, match="here"), Loader(read, range(9), num_workers) as loader:  # noqa: PT012
        for n in loader:
            seen.append(n)
    assert seen == [0, 1, 2]
    assert loader.num_threads == 0


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt, GeneratorExit])
def test_an_error_in_the_loop_ends_the_threads(kind: type[BaseException]) -> None:
    read = list[int]()

    def slowly(n: int) -> int:
        time.sleep(0.01)
        read.append(n)
        return n

    with pytest.raises(kind), Loader(slowly, range(1000), 2) as loader:  # noqa: PT012
        next(iter(loader))
        assert loader.num_threads == 2
        raise kind
    assert loader.num_threads == 0
    assert len(read) < 8


def test_the_time_that_the_loop_waited_is_measured() -> None:
    def wait(pause_s: float) -> float:
        time.sleep(pause_s)
        return pause_s

    waited = {}
    for num_workers in (0, 1):
        with Loader(wait, [0.03] * 4, num_workers) as loader:
            for pause_s in loader:
                time.sleep(2 * pause_s)
        waited[num_workers] = loader.wait_s
    assert waited[0] >= 0.12
    # All results but the first were read while the loop was busy.
    assert 0.03 <= waited[1] < waited[0]


def test_a_thread_that_is_stuck_or_never_starts_costs_no_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Seen once: a thread that was started on a crowded machine did not run for minutes."""
    here, let_go = threading.get_ident(), threading.Event()

    def read(n: int) -> int:
        if n == 1 and threading.get_ident() != here:
            let_go.wait(60)
        return n

    with Loader(read, range(4), 1, stuck_s=0.05) as loader:
        assert list(loader) == [0, 1, 2, 3]
    assert loader.num_threads == 1, "it is left behind"
    let_go.set()
    monkeypatch.setattr("_thread.start_new_thread", lambda *_: 0)
    with Loader(read, range(4), 2, stuck_s=0.05) as loader:
        assert list(loader) == [0, 1, 2, 3]
