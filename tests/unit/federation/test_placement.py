from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from fedvsr.data.owners import Owners
from fedvsr.errors import UserError
from fedvsr.federation import placement
from fedvsr.federation.config import ClusterConfig


def node(node_id: str, kind: str | None = None, **resources: float) -> dict[str, Any]:
    labels = {"ray.io/accelerator-type": kind} if kind else {}
    return {"NodeID": node_id, "Alive": True, "Resources": resources, "Labels": labels}


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray says of its nodes."""
    found = list[dict[str, Any]]()
    monkeypatch.setattr(placement.ray, "nodes", lambda: found)
    return found


def test_a_slot_is_a_whole_gpu_with_a_processor(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a", "RTX-A6000", GPU=4, CPU=32), node("b", "T4", GPU=2, CPU=8)]
    wanted = placement.ask(ClusterConfig(), num_threads=2, cohort=4)
    assert wanted.bundles == [{"CPU": 1.0}, *[{"GPU": 1.0, "CPU": 2.0}] * 4], "a cohort at most"
    assert wanted.gpu_share == 0.1
    assert placement.ask(ClusterConfig(), 1, cohort=40).num_bundles == 6
    chosen = placement.ask(ClusterConfig(accelerator="T4"), 1, cohort=40)
    assert chosen.selectors == [{}, *[{"ray.io/accelerator-type": "T4"}] * 2]


def test_clients_that_share_a_gpu_fit_on_it(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a", GPU=2, CPU=8)]
    wanted = placement.ask(ClusterConfig(clients_per_gpu=20), 1, cohort=40)
    assert (wanted.num_bundles, wanted.gpu_share) == (2, 0.05)
    with pytest.raises(ValueError, match=r"gpu_share = 0\.5 leaves no room for .*_gpu = 3"):
        ClusterConfig(clients_per_gpu=3, gpu_share=0.5)


@pytest.mark.parametrize(
    ("cpus", "num_threads", "slots"),
    # The driver takes a processor that is left over, or one of the clients'.
    [([3], 1, 2), ([3], 2, 1), ([4], 2, 1), ([1], 1, 1), ([8, 8], 4, 3), ([9, 8], 4, 4)],
)
def test_slots_of_a_cluster_without_gpus(
    nodes: list[dict[str, Any]], cpus: list[int], num_threads: int, slots: int
) -> None:
    nodes += [node(str(i), CPU=n) for i, n in enumerate(cpus)]
    assert placement.ask(ClusterConfig(), num_threads, cohort=100).num_bundles == slots
    # Asked not to use GPUs, it does not.
    nodes[0]["Resources"]["GPU"] = 4
    wanted = placement.ask(ClusterConfig(gpu_share=0), num_threads, cohort=100)
    assert (wanted.num_bundles, wanted.gpu_share) == (slots, 0.0)


def test_what_never_fits_is_refused_before_anything_is_asked(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("a", GPU=1, CPU=2), node("b", GPU=1, CPU=1)]
    wanted = placement.ask(ClusterConfig(slots=2), 2, cohort=2)
    # Two GPUs and five processors are asked for, and no node has a second one with two.
    with pytest.raises(UserError, match=r"asks for 2 GPU and 5 CPU .*only 2 nodes: 1 GPU and 2"):
        placement.request(wanted)


def owners_of(**clients: int) -> Owners:
    return Owners(
        tuple(clients), tuple(clients.values()), tuple({"owner": name} for name in clients)
    )


def owned(node_id: str, owner: str, **resources: float) -> dict[str, Any]:
    return {**node(node_id, **resources), "Labels": {"owner": owner}}


@pytest.mark.parametrize(
    ("slots", "cpus", "dealt"),
    [
        # In proportion to 1, 3 and 6 clients, at least one each.
        (10, {"a": 8, "b": 8, "c": 8}, {"a": 1, "b": 3, "c": 6}),
        (5, {"a": 8, "b": 8, "c": 8}, {"a": 1, "b": 1, "c": 3}),
        (3, {"a": 8, "b": 8, "c": 8}, {"a": 1, "b": 1, "c": 1}),
        # As many as fit, no more than clients of the owner, or of a round (8).
        (None, {"a": 8, "b": 8, "c": 8}, {"a": 1, "b": 2, "c": 5}),
        (None, {"a": 8, "b": 2, "c": 4}, {"a": 1, "b": 2, "c": 4}),
        (None, {"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}),
    ],
)
def test_slots_are_dealt_to_owners_by_their_clients(
    nodes: list[dict[str, Any]], slots: int | None, cpus: dict[str, int], dealt: dict[str, int]
) -> None:
    nodes += [node("head", CPU=1), *(owned(name, name, CPU=n) for name, n in cpus.items())]
    owners = owners_of(a=1, b=3, c=6)
    wanted = placement.ask(ClusterConfig(slots=slots), 1, cohort=8, owners=owners)
    assert Counter(wanted.bundle_owners) == dealt
    assert wanted.num_bundles == sum(dealt.values())
    needed = [{"owner": name} for name in wanted.bundle_owners]
    assert wanted.selectors == [{}, *needed]
    assert [wanted.owner_of(i) for i in (1, wanted.num_bundles)] == ["a", "c"]


def test_gpus_are_dealt_to_owners_whole(nodes: list[dict[str, Any]]) -> None:
    nodes += [node("head", CPU=1), *(owned(n, n, CPU=8, GPU=4) for n in ("a", "b"))]
    config = ClusterConfig(clients_per_gpu=2)
    wanted = placement.ask(config, 1, cohort=8, owners=owners_of(a=3, b=9))
    assert Counter(wanted.bundle_owners) == {"a": 1, "b": 3}
    # Three clients of a need two GPUs at most.
    wanted = placement.ask(config, 1, cohort=100, owners=owners_of(a=3, b=9))
    assert Counter(wanted.bundle_owners) == {"a": 2, "b": 4}


def test_the_driver_takes_a_processor_of_its_node(nodes: list[dict[str, Any]]) -> None:
    nodes += [owned("a", "a", CPU=2), owned("b", "b", CPU=2)]
    wanted = placement.ask(ClusterConfig(), 1, 8, owners_of(a=4, b=4), driver_node="a")
    assert Counter(wanted.bundle_owners) == {"a": 1, "b": 2}


def test_an_owner_without_room_is_refused(nodes: list[dict[str, Any]]) -> None:
    nodes += [owned("a", "a", CPU=2), node("c", CPU=8)]
    with pytest.raises(UserError, match=r"^no node of owner b \(owner=b\) has room for a slot of"):
        placement.ask(ClusterConfig(), 2, 2, owners_of(a=1, b=1))
    with pytest.raises(UserError, match=r"cluster\.slots = 1 is fewer than the 2 owners"):
        placement.ask(ClusterConfig(slots=1), 1, 2, owners_of(a=1, b=1))
    nodes += [owned("b", "b", CPU=1)]
    wanted = placement.ask(ClusterConfig(slots=8), 1, 8, owners_of(a=4, b=4))
    with pytest.raises(UserError, match=r"lower cluster\.slots = 8 \(a 4, b 4\) or local"):
        placement.request(wanted)


def test_a_node_of_two_owners_is_a_place_for_each(
    nodes: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes += [node("head", CPU=1), {**owned("n", "x", CPU=4), "Labels": {"a": "1", "b": "1"}}]
    owners = Owners(("a", "b"), (2, 2), ({"a": "1"}, {"b": "1"}))
    wanted = placement.ask(ClusterConfig(slots=4), 1, 4, owners)
    table = {"bundles_to_node_id": dict(enumerate(["head", "n", "n", "n", "n"]))}
    monkeypatch.setattr(placement, "placement_group_table", lambda _: table)
    group: Any = None
    places = placement.Placement(group, wanted).places()
    assert [(p.node_id, p.owner, p.bundles, p.slots) for p in places] == [
        ("n", "a", (1, 2), (0, 1)),
        ("n", "b", (3, 4), (2, 3)),
    ]
