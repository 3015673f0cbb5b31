"""Into how many slices a run's uploads are cut."""

from __future__ import annotations

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from fedvsr.algorithms import fedavg, fedmedian, krum
from fedvsr.errors import UserError
from fedvsr.federation.aggregators import count_slices
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients
from fedvsr.federation.masked_sum import require_room
from fedvsr.federation.placement import Place
from fedvsr.models import tiny
from fedvsr.section import NamedSection
from fedvsr.training.config import LocalConfig
from fedvsr.training.updates import UNCHANGED, UpdateConfig

SECURE = UpdateConfig(secure_sum=True)


def places_of(*owners: str) -> list[Place]:
    """A node with two slots for each owner."""
    return [
        Place(f"node-{i}", "CPU", (i + 1,), (2 * i, 2 * i + 1), owner)
        for i, owner in enumerate(owners)
    ]


def count(
    algorithm: NamedSection,
    *owners: str,
    shards: int | None = None,
    update: UpdateConfig = UNCHANGED,
    num_params: int = 36_000_000,
) -> int:
    clients = Clients(tiny.Config(), algorithm, LocalConfig(), (), update)
    return count_slices(
        clients, ClusterConfig(aggregation_shards=shards), places_of(*owners), num_params
    )


@pytest.mark.parametrize("algorithm", [fedavg.Config(), fedmedian.Config()])
def test_there_is_a_slice_for_each_node(algorithm: NamedSection) -> None:
    assert count(algorithm, "") == 1
    assert count(algorithm, "", "", "") == 3
    assert count(algorithm, "", "", "", shards=2) == 2


def test_slices_are_not_small() -> None:
    assert count(fedavg.Config(), *[""] * 64) == 8
    assert count(fedavg.Config(), *[""] * 64, num_params=9_000_000) == 2
    assert count(fedavg.Config(), *[""] * 64, num_params=1_000) == 1
    assert count(fedavg.Config(), *[""] * 64, num_params=1_000, shards=64) == 64


def test_what_needs_whole_vectors_is_not_sliced() -> None:
    assert count(krum.Config(), "", "", shards=2) == 1
    assert count(fedavg.Config(), "", "", update=UpdateConfig(compression="int8")) == 1
    assert count(fedavg.Config(), "", "", update=SECURE) == 1


def test_updates_do_not_reach_other_owners_unless_asked_to() -> None:
    assert count(fedavg.Config(), "alice", "bob") == 1
    assert count(fedavg.Config(), "alice", "bob", shards=2) == 2


def test_a_cohort_that_a_gpu_cannot_hold_is_refused() -> None:
    """Its processes must all live until the sum."""
    placement: Any = SimpleNamespace(max_live_per_place=10)
    secure = Clients(tiny.Config(), fedavg.Config(), LocalConfig(), (), SECURE)
    require_room(secure, 9, placement)
    with pytest.raises(UserError, match=r"10 clients .* has room for 9 .* cluster\.gpu_share"):
        require_room(secure, 10, placement)
    require_room(replace(secure, update=UNCHANGED), 10, placement)
    require_room(secure, 1000, SimpleNamespace(max_live_per_place=math.inf))  # type: ignore[arg-type]
