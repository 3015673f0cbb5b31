"""What only a GPU can show of CUDA graphs: `pytest -m gpu`."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fedvsr.graphs import Replayed, cached_tensors

pytestmark = pytest.mark.gpu


def test_a_replay_computes_on_new_inputs() -> None:
    weight = torch.ones(3, device="cuda")
    calls = []

    def scaled(x: Tensor) -> Tensor:
        calls.append(len(x))
        return x.float() * weight

    replayed = Replayed[Tensor]("scaling")
    with torch.cuda.stream(torch.cuda.Stream()):
        for i in range(5):
            weight.fill_(i)  # Memory that stays in place is read anew.
            got = replayed("key", scaled, torch.tensor([i, 1, 2], dtype=torch.uint8))
            assert got.tolist() == [i * i, i, 2 * i]
        assert len(calls) == 2, "called and recorded, then only replayed"
        assert replayed("key", scaled, torch.zeros(1, dtype=torch.uint8)).shape == (3,)
        assert replayed("key", scaled, torch.ones(3, dtype=torch.uint8)).tolist() == [4, 4, 4]
        assert calls == [3, 3, 1], "a smaller batch in between costs no graph"
        replayed.release()
        replayed("key", scaled, torch.ones(3, dtype=torch.uint8))
        assert calls == [3, 3, 1, 3], "recorded at once, as its kernels are loaded"


def test_replays_draw_the_numbers_that_calls_draw() -> None:
    def draw(x: Tensor) -> Tensor:
        return x.new_empty(4).bernoulli_(0.5) + torch.rand(4, device="cuda")

    inputs = torch.zeros(4)
    torch.manual_seed(1)
    want = [draw(inputs.cuda()).clone() for _ in range(5)]
    assert not torch.equal(want[2], want[3])
    torch.manual_seed(1)
    with torch.cuda.stream(torch.cuda.Stream()):
        replayed = Replayed[Tensor]("drawing")
        got = [replayed("key", draw, inputs).clone() for _ in range(5)]
    assert torch.equal(torch.stack(want), torch.stack(got))


def test_what_cannot_be_recorded_is_called_and_the_reason_given() -> None:
    def waits(x: Tensor) -> Tensor:
        return x * x.sum().item()

    replayed = Replayed[Tensor]("waiting")
    with torch.cuda.stream(torch.cuda.Stream()):
        replayed("key", waits, torch.ones(2))
        with pytest.warns(RuntimeWarning, match="^waiting is not replayed as a CUDA graph and may"):
            assert replayed("key", waits, torch.ones(2)).tolist() == [2, 2]
        assert replayed("key", waits, torch.ones(2)).tolist() == [2, 2]


def test_a_replay_reads_tensors_that_the_cache_dropped() -> None:
    @cached_tensors(maxsize=1)
    def counted(n: int) -> Tensor:
        return torch.arange(n, device="cuda")

    replayed = Replayed[Tensor]("counting")
    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            got = replayed("key", lambda x: x + counted(3), torch.zeros(3))
            counted(4)
            torch.full((3,), 7, device="cuda")  # It would take the memory of the dropped tensor.
            assert got.tolist() == [0, 1, 2]
