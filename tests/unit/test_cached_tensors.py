"""Tensors that depend on a function's arguments alone, and graphs that read them."""

from __future__ import annotations

import weakref
from contextlib import nullcontext
from unittest import mock

import pytest
import torch
from torch import Tensor

from fedvsr import graphs
from fedvsr.graphs import Replayed, cached_tensors


@cached_tensors(maxsize=2)
def counted(n: int) -> Tensor:
    return torch.arange(n)


@pytest.fixture(autouse=True)
def empty() -> None:
    counted.results.clear()


def test_the_oldest_of_too_many_results_is_dropped() -> None:
    first = counted(3)
    assert counted(3) is first
    counted(4)
    counted(5)
    assert list(counted.results) == [((4,), ()), ((5,), ())]
    assert counted(3) is not first


def test_a_recorded_graph_keeps_what_the_cache_drops() -> None:
    replayed = Replayed[Tensor]("counting")
    with (
        mock.patch.multiple(torch.cuda, CUDAGraph=mock.DEFAULT, current_stream=mock.DEFAULT),
        mock.patch.object(torch.cuda, "graph", return_value=nullcontext()),
        mock.patch.object(graphs, "_on_gpu", lambda inputs: inputs),
    ):
        for _ in range(2):
            replayed("key", lambda x: x + counted(3), torch.zeros(3))
    read = weakref.ref(counted(3))
    counted(4)
    counted(5)
    assert ((3,), ()) not in counted.results
    assert read() is not None
    replayed.release()
    assert read() is None
    assert not graphs._recordings


def test_what_a_graph_computes_is_not_cached() -> None:
    with mock.patch.multiple(
        torch.cuda, is_initialized=lambda: True, is_current_stream_capturing=lambda: True
    ):
        inside = counted(3)
    assert counted(3) is not inside
