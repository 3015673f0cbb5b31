from __future__ import annotations

import pickle
import threading

import pytest

from fedvsr.limits import ClusterGoneError, within


def test_a_call_is_waited_for_no_longer_than_its_limit() -> None:
    assert within(60, lambda: 7) == 7
    with pytest.raises(ZeroDivisionError):
        within(60, lambda: 1 / 0)
    let_go = threading.Event()
    with pytest.raises(TimeoutError, match=r"no answer within 0\.05 s"):
        within(0.05, let_go.wait)
    let_go.set()


def test_a_cluster_that_is_gone_is_told_across_processes() -> None:
    error = pickle.loads(pickle.dumps(ClusterGoneError("gone")))
    assert (type(error), str(error)) == (ClusterGoneError, "gone")
