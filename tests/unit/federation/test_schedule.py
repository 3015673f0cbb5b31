from __future__ import annotations

import math

import pytest

from fedvsr.federation.placement import Place
from fedvsr.federation.schedule import Schedule

A, B = (Place("node", "GPU", (i + 1,), (i,)) for i in range(2))
STEPS = [4, 1, 1, 3, 2]


def plan(schedule: Schedule, living: dict[int, Place]) -> list[Place]:
    found = schedule.plan(range(len(STEPS)), [A, B], living, {})
    return [found[i] for i in range(len(STEPS))]


def test_clients_go_in_order_to_the_place_that_is_free_first() -> None:
    # By hand: 4 to A; 1, 1 and 3 to B, which is free at 0, 1 and 2; then A (free at 4) takes 2.
    assert plan(Schedule(STEPS.__getitem__), {}) == [A, B, B, B, A]


def test_what_a_client_took_counts_more_than_its_steps() -> None:
    schedule = Schedule(STEPS.__getitem__)
    schedule.took(0, 1.0)
    # A quarter of a second a step, as far as is known: 1 s for client 0, 0.25 s for 1, and so on.
    assert schedule.expected_s(0) == 1.0
    assert schedule.expected_s(3) == 0.75
    schedule.took(0, 8.0)
    assert schedule.expected_s(0) == 8.0


def test_a_client_stays_with_its_actor_unless_waiting_costs_more() -> None:
    schedule = Schedule(lambda _: 1)
    # Both live at B: building one anew costs more than to wait for the other.
    assert schedule.plan([0, 1], [A, B], {0: B, 1: B}, {}) == {0: B, 1: B}
    for client_id in (0, 1):
        schedule.took(client_id, 60.0)
    assert schedule.plan([0, 1], [A, B], {0: B, 1: B}, {}) == {0: B, 1: A}


def test_newcomers_leave_the_places_of_others_alone() -> None:
    schedule = Schedule(lambda _: 1)
    assert schedule.plan([0, 1], [A, B], {1: A}, {}) == {0: B, 1: A}


def test_a_slot_that_others_hold_is_free_later() -> None:
    schedule = Schedule(lambda _: 4)
    assert schedule.plan([0, 1], [A, B], {}, {A: 3.0}) == {0: B, 1: A}
    assert schedule.plan([0, 1], [A, B], {}, {A: 5.0}) == {0: B, 1: B}
    assert schedule.plan([0, 1], [A], {}, {A: math.inf}) == {0: A, 1: A}


def test_a_late_client_is_expected_to_be_late_again() -> None:
    schedule = Schedule(lambda _: 1)
    schedule.took(0, 10.0)
    assert schedule.left_s(0, 4.0) == 6.0
    assert schedule.left_s(0, 13.0) == 3.0


@pytest.mark.parametrize(("wait_s", "worth"), [(1.0, False), (30.0, True)])
def test_moving_is_worth_it_where_waiting_is_longer_than_building(
    wait_s: float, worth: bool
) -> None:
    assert Schedule(lambda _: 1).worth_moving(wait_s) is worth
