"""Steps of a recurrence: the gradients are those of plain calls, in fewer operations."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedvsr.models._recompute import recompute_plain
from fedvsr.models._recurrence import recurrence, with_present_parameters
from tests.unit.models.test_operations import Operations

STEPS = 4


class Cell(nn.Module):
    """A step's layers; `late` is used from the second step on, `frozen` has no gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.late = nn.Linear(5, 5)
        self.frozen = nn.Linear(5, 5).requires_grad_(False)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, 5))

    def forward(self, x: Tensor) -> Tensor:
        return self.frozen(self.linear(x)).tanh() * self.gain

    def plain(self, x: Tensor, later: bool) -> Tensor:
        """A step without `recurrence`."""
        return self(x) + (self.late(x) if later else x)


@pytest.fixture
def cell() -> Cell:
    torch.manual_seed(0)
    return Cell()


def unroll(step: Any) -> Tensor:
    x = torch.linspace(-1, 1, 15).view(3, 5)
    for i in range(STEPS):
        x = step(x, i > 0)
    return x


def gradients(cell: Cell, loss: Tensor) -> list[Tensor | None]:
    cell.zero_grad()
    loss.backward()
    return [p.grad for p in cell.parameters()]


def equal(got: list[Tensor | None], want: list[Tensor | None]) -> bool:
    return all(
        (a is None and b is None) or (a is not None and b is not None and torch.equal(a, b))
        for a, b in zip(got, want, strict=True)
    )


@pytest.mark.parametrize("again", [False, True])
def test_gradients_are_those_of_plain_calls(cell: Cell, again: bool) -> None:
    def step(x: Tensor, later: bool) -> Tensor:
        return recompute_plain(cell.plain, x, later) if again else cell.plain(x, later)

    want = gradients(cell, unroll(cell.plain).square().sum())
    assert sum(grad is None for grad in want) == 2
    got = gradients(cell, unroll(recurrence(step, cell)).square().sum())
    assert equal(got, want)


def test_a_second_backward_pass_begins_at_zero(cell: Cell) -> None:
    loss = unroll(recurrence(cell.plain, cell)).square().sum()
    loss.backward(retain_graph=True)
    first = [None if p.grad is None else p.grad.clone() for p in cell.parameters()]
    assert equal(gradients(cell, loss), first)


@pytest.mark.parametrize("autocast", [False, True])
def test_gradients_can_be_differentiated_again(cell: Cell, autocast: bool) -> None:
    """An attack on updates fits frames to gradients."""

    def slope(step: Any) -> Tensor:
        cell.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = unroll(step).float().square().sum()
        trained = [p for p in cell.parameters() if p.requires_grad]
        first = torch.autograd.grad(loss, trained, create_graph=True)
        torch.stack([grad.square().sum() for grad in first]).sum().backward()
        return torch.cat([p.grad.flatten() for p in trained])

    want, got = slope(cell.plain), slope(recurrence(cell.plain, cell))
    assert (got - want).norm() < (0.05 if autocast else 1e-6) * want.norm()


def test_a_steps_gradients_are_added_at_once(cell: Cell) -> None:
    with Operations() as operations:
        unroll(recurrence(cell.plain, cell)).sum().backward()
    counts = operations.counts
    # The last step is the first in the backward pass; the first one lacks `late`.
    assert (counts["_foreach_add"], counts["_foreach_add_"]) == (1, STEPS - 2)
    with Operations() as plain:
        unroll(cell.plain).sum().backward()
    assert plain.counts["add"] - counts["add"] == 5 * (STEPS - 2) + 3


def test_a_gradient_that_others_hold_is_not_changed() -> None:
    """The gradient of an added parameter is the very tensor that the caller gave."""
    holder = nn.ParameterList([nn.Parameter(torch.zeros(3))])
    take_step = recurrence(lambda x: x + holder[0], holder)
    given = torch.ones(3)
    torch.autograd.backward([take_step(torch.zeros(3)) for _ in range(3)], [given] * 3)
    assert torch.equal(given, torch.ones(3))
    assert torch.equal(holder[0].grad, torch.full((3,), 3.0))


def test_autocast_converts_once_and_sums_in_float32(cell: Cell) -> None:
    seen = set[torch.dtype]()

    def step(x: Tensor, later: bool) -> Tensor:
        seen.add(cell.linear.weight.dtype)
        assert cell.gain.dtype == torch.float32
        return cell.plain(x, later)

    with torch.autocast("cpu", torch.bfloat16), Operations() as operations:
        result = unroll(recurrence(step, cell))
    assert seen == {torch.bfloat16}
    assert operations.counts["_foreach_copy_"] == 1
    got = gradients(cell, result.float().square().sum())
    exact = gradients(cell, unroll(cell.plain).square().sum())
    for a, b in zip(got, exact, strict=True):
        assert (a is None) == (b is None)
        assert a is None or b is None or (a - b).norm() < 0.02 * b.norm()
        assert a is None or a.dtype == torch.float32


def test_many_small_gradients_are_not_lost_under_autocast() -> None:
    """In bfloat16, 256 + 1 is 256."""
    layer = nn.Linear(1, 1, bias=False)
    inputs = torch.tensor([[256.0]] + 100 * [[1.0]])
    with torch.autocast("cpu", torch.bfloat16):
        take_step = recurrence(lambda x: layer(x), layer)
        total = torch.stack([take_step(x[None]).float() for x in inputs.flip(0)]).sum()
    total.backward()
    assert layer.weight.grad.item() == 356


def test_parameters_are_the_modules_own_after_a_step(cell: Cell) -> None:
    own = list(cell.parameters())

    def step(x: Tensor) -> Tensor:
        assert cell.linear.weight is not own[0]
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        recurrence(step, cell)(torch.zeros(1, 5))
    assert all(a is b for a, b in zip(cell.parameters(), own, strict=True))


@pytest.mark.parametrize("reason", ["no gradient", "compiled"])
def test_a_step_may_have_the_modules_own_parameters(cell: Cell, reason: str) -> None:
    if reason == "compiled":
        cell.linear.compile(backend="eager")
    with torch.set_grad_enabled(reason != "no gradient"):
        take_step = recurrence(lambda: cell.linear.weight, cell)
        assert take_step() is cell.linear.weight


def test_a_later_call_may_have_the_parameters_of_the_step(cell: Cell) -> None:
    def weight() -> Tensor:
        return cell.linear.weight

    assert with_present_parameters(weight, cell) is weight

    def step() -> tuple[Tensor, Any]:
        return cell.linear.weight, with_present_parameters(weight, cell)

    used, later = recurrence(step, cell)()
    assert later() is used
    assert weight() is not used
