"""The real executor on simulated clusters: every client trains once, in order, on time, cheaply."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import pairwise
from types import FrameType
from typing import Any

import pytest

from fedvsr.data.owners import Owners
from fedvsr.errors import UserError
from fedvsr.federation.config import Isolation
from fedvsr.federation.dispatch import Dispatch, Waiting
from fedvsr.federation.executors import Fault
from fedvsr.federation.placement import Place
from fedvsr.federation.schedule import BUILD_S, Schedule
from fedvsr.messages import ClientTask
from tests.unit.federation.simulated import Cluster, greedy_s, run_rounds, simulated


def cohorts_of(num_clients: int, cohort: int, num_rounds: int) -> list[list[int]]:
    rng = random.Random(0)
    return [rng.sample(range(num_clients), cohort) for _ in range(num_rounds)]


@pytest.mark.parametrize(
    ("num_slots", "cohort", "num_rounds"),
    [
        (4, 40, 3),
        (4, 1000, 1),
        (64, 256, 3),
        (512, 1024, 1),
        pytest.param(512, 10_000, 1, marks=pytest.mark.full),
    ],
)
def test_a_round_takes_as_long_as_greedy_list_scheduling(
    num_slots: int, cohort: int, num_rounds: int
) -> None:
    rng = random.Random(1)
    cluster = Cluster([rng.uniform(20, 200) for _ in range(2 * cohort)], num_slots)
    cohorts = cohorts_of(2 * cohort, cohort, num_rounds)
    with simulated(cluster) as executor:
        seconds = run_rounds(executor, cohorts)
    # Each client is new to its slot, and its process starts first.
    least = [greedy_s([cluster.durations[i] + 5 for i in ids], num_slots) for ids in cohorts]
    assert all(s <= 1.05 * g for s, g in zip(seconds, least, strict=True)), (seconds, least)
    assert Counter(client for client, *_ in cluster.log) == Counter(
        i for ids in cohorts for i in ids
    )
    by_slot = dict[int, list[tuple[float, float]]]()
    for _, slot, sent, done in cluster.log:
        by_slot.setdefault(slot, []).append((sent, done))
    for times in by_slot.values():
        assert all(a[1] <= b[0] for a, b in pairwise(times)), "one at a time"


def test_clients_that_have_a_process_keep_it() -> None:
    cluster = Cluster([10.0] * 16, 16)
    with simulated(cluster) as executor:
        seconds = run_rounds(executor, [range(16)] * 4)
    assert cluster.num_built == 16
    assert seconds == [15, 10, 10, 10]


def test_a_process_of_a_slot_takes_one_client_after_the_other() -> None:
    rng = random.Random(1)
    cluster = Cluster([rng.uniform(20, 200) for _ in range(128)], 16)
    cohorts = cohorts_of(128, 64, 4)
    with simulated(cluster, isolation="slot") as executor:
        seconds = run_rounds(executor, cohorts)
    assert cluster.num_built == 16, "once, and in the first round"
    least = [greedy_s([cluster.durations[i] for i in ids], 16) for ids in cohorts]
    assert all(s <= 1.05 * g + 5 for s, g in zip(seconds, least, strict=True)), (seconds, least)


@pytest.mark.parametrize(("isolation", "seconds"), [("slot", 15), ("client", 16)])
def test_a_short_wait_is_worth_a_move_if_no_process_starts(
    isolation: Isolation, seconds: int
) -> None:
    # All are expected to take as long, so each slot gets two. Client 0 is late: after 7 of its 8
    # seconds client 2, which waits for it, can go to the other slot.
    cluster = Cluster([8.0, 4.0, 3.0, 3.0], 2)
    with simulated(cluster, isolation=isolation) as executor:
        assert run_rounds(executor, [range(4)]) == [seconds]
    slots = {client_id: slot for client_id, slot, *_ in cluster.log}
    assert (slots[2] == slots[3]) == (isolation == "slot")
    assert cluster.num_built == (2 if isolation == "slot" else 4)


@pytest.mark.parametrize("isolation", ["client", "slot"])
def test_a_client_that_runs_out_of_memory_is_retried_alone_on_its_gpu(isolation: Isolation) -> None:
    cluster = Cluster([30.0 + i for i in range(24)], 8, per_gpu=4, hungry=frozenset({2, 9, 20}))
    faults = list[Fault]()
    with simulated(cluster, isolation=isolation) as executor:
        run_rounds(executor, [range(24)], faults)
    assert {fault.kind for fault in faults} == {"out_of_memory"}
    assert sorted(fault.client_id for fault in faults) == [2, 9, 20], "one attempt each was lost"
    for client_id, gpu, sent, done in cluster.log:
        others = [entry for entry in cluster.log if entry[0] != client_id and entry[1] == gpu]
        is_alone = not any(begun < done and sent < ended for _, _, begun, ended in others)
        assert is_alone == (client_id in cluster.hungry), client_id


def test_short_rounds_do_not_ask_the_cluster_more_often() -> None:
    cluster, looked = Cluster([0.1] * 4, 2, build_s=0.0), list[float]()
    with simulated(cluster) as executor:
        placement: Any = executor._placement
        places = placement.places
        placement.places = lambda: looked.append(cluster.now) or places()  # type: ignore[func-returns-value]
        run_rounds(executor, [range(4)] * 100)
    assert cluster.now >= 20
    assert len(looked) <= cluster.now + 1, "once a second, and not for each of 100 rounds"


def steps_per_client(cohort: int, num_slots: int, isolation: Isolation = "client") -> float:
    """Lines of Python that the executor, its queues and its pool execute for each client."""
    num_lines = 0
    files = ("dispatch.py", "schedule.py", "ray_executor.py", "actors.py")

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal num_lines
        if event == "call" and not frame.f_code.co_filename.endswith(files):
            return None
        num_lines += event == "line"
        return trace

    rng = random.Random(1)
    cluster = Cluster([rng.uniform(20, 200) for _ in range(2 * cohort)], num_slots)
    before = sys.gettrace()
    with simulated(cluster, isolation=isolation) as executor:
        sys.settrace(trace)
        try:
            run_rounds(executor, cohorts_of(2 * cohort, cohort, 2))
        finally:
            sys.settrace(before)
    return num_lines / (2 * cohort)


def test_the_work_for_a_client_does_not_grow_with_the_round() -> None:
    few, many = steps_per_client(32, 8), steps_per_client(256, 8)
    # In a short round, the looks once a second count for more.
    assert many < 1.2 * few, (few, many)
    assert steps_per_client(256, 64) < 1.5 * many, "nor with the slots"
    assert steps_per_client(256, 64, "slot") < 1.5 * many, "nor if slots have the processes"


def planned(
    schedule: Schedule,
    client_ids: Sequence[int],
    places: Sequence[Place],
    living: Mapping[int, Place],
    taken_s: Mapping[Place, float],
    owners: Owners,
) -> dict[int, Place]:
    """The plan by its definition: a look at all slots of its owner for each client."""
    free_at = {(place, slot): 0.0 for place in places for slot in place.slots}
    free_at |= {(p, p.slots[0]): left_s for p, left_s in taken_s.items() if p in places}
    residents = Counter(living[i] for i in client_ids if i in living)
    plan = dict[int, Place]()
    for client_id in client_ids:
        home = living.get(client_id)
        costs = {
            (
                free + (BUILD_S if home is not None and home != place else 0.0),
                residents[place] if home is None else 0,
                slot,
            ): place
            for (place, slot), free in free_at.items()
            if place.owner == owners.of(client_id)
        }
        if not costs:
            continue
        start, _, slot = best = min(costs)
        plan[client_id] = costs[best]
        free_at[plan[client_id], slot] = start + schedule.expected_s(client_id)
    return plan


def some_owners(rng: random.Random) -> Owners:
    """Up to four owners of 40 clients; none in a third of all cases."""
    names = ("a", "b", "c", "d")[: rng.choice([0, 0, 2, 2, 3, 4])]
    ends = sorted(rng.sample(range(1, 40), max(0, len(names) - 1)))
    counts = [end - begin for begin, end in pairwise([0, *ends, 40])]
    return Owners(names, tuple(counts) if names else (), ({"owner": "x"},) * len(names))


def whose(rng: random.Random, owners: Owners) -> str:
    return rng.choice(owners.names or ("",))


def test_the_plan_is_the_one_by_definition() -> None:
    rng = random.Random(0)
    for _ in range(200):
        owners = some_owners(rng)
        counts = [rng.randint(1, 3) for _ in range(rng.randint(1, 5))]
        firsts = [sum(counts[:i]) for i in range(len(counts))]
        places = [
            Place(f"n{i}", "CPU", (i,), tuple(range(first, first + num)), whose(rng, owners))
            for i, (first, num) in enumerate(zip(firsts, counts, strict=True))
        ]
        gone = Place("gone", "CPU", (9,), (99,))
        ids = rng.sample(range(40), rng.randint(1, 20))
        schedule = Schedule(lambda i: 1 + i % 5, owners.of)
        for i in rng.sample(range(40), 10):
            schedule.took(i, rng.choice([1.0, 4.0, 20.0]))
        living = {i: rng.choice([*places, gone]) for i in rng.sample(range(40), 15)}
        taken_s = {rng.choice(places): 6.0} if rng.random() < 0.5 else {}
        expected = planned(schedule, ids, places, living, taken_s, owners)
        assert schedule.plan(ids, places, living, taken_s) == expected


def owned_cluster(rng: random.Random, owners: Owners) -> Cluster:
    """A cluster in which each owner has at least one node of two GPUs."""
    nodes = [*owners.names, *(whose(rng, owners) for _ in range(rng.randint(0, 4)))]
    rng.shuffle(nodes)
    return Cluster(
        [rng.uniform(2, 30) for _ in range(40)],
        num_slots=2 * len(nodes),
        owners=owners,
        gpu_owners=[owner for owner in nodes for _ in range(2)],
        per_node=2,
    )


def longest_idle_s(cluster: Cluster, begun: float) -> float:
    """The longest time for which a slot was free while a client of its owner waited."""
    longest, owners = 0.0, cluster.owners
    for slot, owner in enumerate(cluster.gpu_owners):
        sent_to = [sent for i, _, sent, _ in cluster.log if owners.of(i) == owner]
        last_sent = max(sent_to, default=begun)
        times = sorted((sent, done) for _, gpu, sent, done in cluster.log if gpu == slot)
        free = [(begun, last_sent)] if not times else [(begun, times[0][0])]
        free += [(done, sent) for (_, done), (sent, _) in pairwise([*times, (last_sent, 0.0)])]
        longest = max([longest, *(min(sent, last_sent) - done for done, sent in free)])
    return longest


def test_no_client_is_ever_off_its_owners_places_and_no_slot_idles() -> None:
    rng = random.Random(0)
    num_moved = 0
    for _ in range(200):
        while not (owners := some_owners(rng)):
            pass
        cluster = owned_cluster(rng, owners)
        places = dict[int, set[int]]()
        with simulated(cluster) as executor:
            for cohort in [rng.sample(range(40), rng.randint(1, 20)) for _ in range(2)]:
                begun = cluster.now
                cluster.log.clear()
                run_rounds(executor, [cohort])
                assert sorted(i for i, *_ in cluster.log) == sorted(cohort)
                assert all(cluster.gpu_owners[gpu] == owners.of(i) for i, gpu, *_ in cluster.log)
                # A client waits for a slot rather than for a new process, and one that is late is
                # expected as much later again. The executor looks once a second.
                assert longest_idle_s(cluster, begun) <= 2 * BUILD_S + 2
                for i, gpu, *_ in cluster.log:
                    places.setdefault(i, set()).add(gpu)
        num_moved += any(len(gpus) > 1 for gpus in places.values())
    assert num_moved > 20, "hardly a client has moved: the test shows nothing"


def test_a_lost_owner_is_absent_and_takes_part_again() -> None:
    owners = Owners(("a", "b"), (4, 4), ({"owner": "a"}, {"owner": "b"}))
    # Two nodes of two GPUs for a; one for b, which leaves in the first round and returns later.
    cluster = Cluster(
        [30.0] * 8,
        num_slots=6,
        owners=owners,
        gpu_owners=["a", "a", "a", "a", "b", "b"],
        per_node=2,
        away={"node-0": (20.0, 500.0), "node-2": (20.0, 300.0)},
    )
    faults = list[Fault]()
    with simulated(cluster) as executor:
        run_rounds(executor, [range(8)], faults)
        assert sorted(f.client_id or 0 for f in faults if f.final) == [4, 5, 6, 7]
        retried = {f.client_id for f in faults if not f.final}
        assert len(retried) == 2, "those of a on its lost node, which its other node takes"
        assert retried < {0, 1, 2, 3}
        (message,) = {f.message.partition(": ")[2] for f in faults if f.final}
        assert message.startswith("no node of owner b (owner=b) is alive; start one with `ray ")
        faults.clear()
        run_rounds(executor, [[4, 0, 5]], faults)
        assert [f.client_id for f in faults] == [4, 5]
        assert all(isinstance(f.error, UserError) for f in faults)
        cluster.now = max(cluster.now, 300.0)
        run_rounds(executor, [range(8)])
    assert all(cluster.gpu_owners[gpu] == owners.of(i) for i, gpu, *_ in cluster.log)


A, B = (Place(f"n{i}", "GPU", (i + 1,), (2 * i, 2 * i + 1)) for i in range(2))


def started(dispatch: Dispatch, now: float = 0.0, **taken: float) -> list[tuple[int, int]]:
    taken_s = {{"A": A, "B": B}[name]: left_s for name, left_s in taken.items()}
    return [(i.task.client_id, slot) for i, _, slot in dispatch.starting(now, taken_s)]


def dispatch_of(at_a: Sequence[int], at_b: Sequence[int], train_s: float = 60.0) -> Dispatch:
    schedule = Schedule(lambda _: 1)
    schedule.took(99, train_s)
    dispatch = Dispatch(schedule)
    dispatch.set_places([A, B])
    tasks = [(i, A) for i in at_a] + [(i, B) for i in at_b]
    dispatch.queue([Waiting(ClientTask(i, 1, 1, seed=i), place) for i, place in tasks])
    return dispatch


def test_a_place_takes_its_own_clients_in_order() -> None:
    dispatch = dispatch_of([5, 4, 3], [2])
    assert started(dispatch, B=3.0) == [(5, 0), (4, 1), (2, 3)], "the scorer has B's first slot"
    assert started(dispatch) == [(3, 2)], "60 s are longer than a start elsewhere"
    assert not list(dispatch.waiting())


def test_the_last_of_a_long_queue_moves_to_a_free_slot() -> None:
    dispatch = dispatch_of([5, 4, 3, 1], [])
    assert started(dispatch) == [(5, 0), (4, 1), (1, 2), (3, 3)]
    quick = dispatch_of([5, 4, 3, 1], [], train_s=4.0)
    assert started(quick) == [(5, 0), (4, 1)], "to wait for 4 s is cheaper than to move"
    for slot in (0, 1):
        quick.began(slot, 0.0)
    assert started(quick, now=12.0) == [(1, 2), (3, 3)], "it is late"


def test_a_client_does_not_return_to_the_node_that_lost_it() -> None:
    dispatch = dispatch_of([5, 4], [])
    assert started(dispatch) == [(5, 0), (4, 1)]
    dispatch.add(Waiting(ClientTask(3, 1, 1, seed=3), A, 1, shunned="n1"))
    assert started(dispatch) == []
    dispatch.ended(0)
    assert started(dispatch) == [(3, 0)]
    assert dispatch.is_busy(3)
    assert not dispatch.is_busy(5)


def test_a_client_that_ran_out_of_memory_has_its_place_for_itself() -> None:
    dispatch = dispatch_of([5, 4], [], train_s=1.0)
    assert started(dispatch) == [(5, 0), (4, 1)]
    dispatch.ended(0)
    dispatch.add(Waiting(ClientTask(5, 1, 1, seed=5), A, 1, alone=True))
    dispatch.add(Waiting(ClientTask(3, 1, 1, seed=3), A))
    assert started(dispatch, A=1.0) == [], "client 4 trains there, and the scorer scores"
    dispatch.ended(1)
    assert started(dispatch, A=1.0) == []
    assert started(dispatch) == [(5, 0)], "and client 3 waits"
    assert started(dispatch) == []
    dispatch.ended(0)
    assert started(dispatch) == [(3, 0)]


def test_slots_of_lost_places_are_not_given_away() -> None:
    dispatch = dispatch_of([5, 4], [3])
    assert started(dispatch) == [(5, 0), (4, 1), (3, 2)]
    dispatch.set_places([B])
    dispatch.ended(0)
    dispatch.queue([Waiting(ClientTask(5, 1, 1, seed=5), B)])
    assert started(dispatch) == [(5, 3)]
    for slot in (1, 2, 3):
        dispatch.ended(slot)
    assert not dispatch
