from __future__ import annotations

from typing import Any

import pytest

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
        placement.reserve(wanted, 1.0)
