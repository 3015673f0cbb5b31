from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest

from fedvsr.federation.sampling import (
    Cohort,
    FederationConfig,
    sample_cohort,
    upload_fails,
)
from fedvsr.seeding import generator

# SHA-256, shortened, of what was drawn before clients were a table: a run of an earlier version is
# resumed with the same clients.
DRAWN = {
    "uniform": "8cb0ada8318c1de3ee05ea927fda5034",
    "size": "9703580a5c2376082d87835850cf6c44",
    "power_of_choice": "82b925c774716c03cd4c00aec27fdba0",
    "round_robin": "e0ebc211322dbe9684182af901a154f6",
    "poisson": "ee7e9f5eb48e4434dbfaa0b5b9d0522a",
}


def cohort(
    round_idx: int,
    seed: int = 1,
    sizes: Sequence[int] = (4,) * 8,
    losses: Mapping[int, float] | None = None,
    **config: Any,
) -> Cohort:
    return sample_cohort(FederationConfig(**config), seed, round_idx, sizes, losses or {})


@pytest.mark.parametrize("sampling", ["uniform", "size", "power_of_choice", "round_robin"])
def test_draws_are_without_replacement_and_seeded(sampling: str) -> None:
    drawn = [cohort(i, sampling=sampling, offline_probability=0.3) for i in range(1, 300)]
    assert all(len(set(c.client_ids)) == len(c.client_ids) for c in drawn)
    assert all(len(c.client_ids) == min(4, c.num_online) for c in drawn)
    assert drawn[5] == cohort(6, sampling=sampling, offline_probability=0.3)
    assert drawn != [
        cohort(i, 2, sampling=sampling, offline_probability=0.3) for i in range(1, 300)
    ]


def test_uniform() -> None:
    counts = np.bincount(np.concatenate([cohort(i).client_ids for i in range(2000)]), minlength=8)
    # 1000 expected each, standard deviation sqrt(2000 / 4) = 22.
    assert np.abs(counts - 1000).max() < 5 * 22


def test_by_size() -> None:
    first = [
        cohort(i, sizes=[1, 3], sampling="size", clients_per_round=1).client_ids[0]
        for i in range(2000)
    ]
    # 1500 expected, standard deviation sqrt(2000 * 3 / 16) = 19.
    assert abs(sum(first) - 1500) < 5 * 19


def test_poisson_draws_clients_independently() -> None:
    drawn = [cohort(i, sampling="poisson", clients_per_round=2).client_ids for i in range(2000)]
    counts = np.bincount([i for ids in drawn for i in ids], minlength=8)
    # Each with probability 2 / 8: 500 expected, standard deviation sqrt(2000 * 3 / 16) = 19.
    assert np.abs(counts - 500).max() < 5 * 19
    # Independent: cohorts have the variance 8 * 3 / 16 = 1.5 of a binomial, give or take 0.05.
    assert abs(np.var([len(ids) for ids in drawn]) - 1.5) < 5 * 0.05
    # Offline clients are not drawn, so cohorts are half as large.
    fewer = [cohort(i, sampling="poisson", offline_probability=0.5) for i in range(1000)]
    assert np.mean([len(c.client_ids) for c in fewer]) == pytest.approx(2, abs=0.2)


def test_power_of_choice_takes_the_highest_losses_and_the_unknown_first() -> None:
    losses = {i: float(i) for i in range(8)}
    everyone = {"sampling": "power_of_choice", "num_candidates": 8, "clients_per_round": 2}
    assert cohort(1, losses=losses, **everyone).client_ids == [7, 6]
    del losses[0]
    assert cohort(1, losses=losses, **everyone).client_ids == [0, 7]
    # Two candidates: those drawn are ordered by loss.
    pair = cohort(1, losses=losses, **everyone | {"num_candidates": 2}).client_ids
    assert sorted(pair, key=lambda i: -losses.get(i, 9.0)) == pair
    # Candidates are drawn by size: a client without frames is none.
    sizes = [4] * 7 + [0]
    assert 7 not in {
        i
        for t in range(50)
        for i in cohort(
            t, sizes=sizes, losses=losses, **everyone | {"num_candidates": 4}
        ).client_ids
    }
    few = [cohort(i, losses=losses, sampling="power_of_choice").client_ids for i in range(50)]
    assert len({tuple(ids) for ids in few}) == 1, "twice four candidates are all eight"


def test_round_robin_takes_turns_and_skips_offline_clients() -> None:
    turns = [cohort(i, sampling="round_robin", clients_per_round=3).client_ids for i in (1, 2, 3)]
    assert turns == [[0, 1, 2], [3, 4, 5], [6, 7, 0]]
    # Round 1 begins at client 0; the next online client replaces an offline one.
    some = [
        cohort(1, seed, sampling="round_robin", clients_per_round=3, offline_probability=0.5)
        for seed in range(20)
    ]
    assert all(c.client_ids == sorted(c.client_ids) for c in some)
    assert all(len(c.client_ids) == min(3, c.num_online) for c in some)
    assert any(max(c.client_ids) > 2 for c in some)


def test_availability() -> None:
    online = [cohort(i, offline_probability=0.25).num_online for i in range(2000)]
    # 6 of 8 expected, standard deviation sqrt(8 * 3 / 16 / 2000) = 0.027; none online is redrawn.
    assert abs(np.mean(online) - 6) < 5 * 0.027
    assert min(cohort(i, offline_probability=0.95).num_online for i in range(200)) == 1


def test_upload_failures() -> None:
    config = FederationConfig(upload_failure_probability=0.25)
    lost = np.array(
        [[upload_fails(config, 5, round_idx, i) for i in range(40)] for round_idx in range(1, 51)]
    )
    # Standard deviations: sqrt(3 / 16 / 2000) = 0.0097, of a round sqrt(3 / 16 / 40) = 0.068.
    assert abs(lost.mean() - 0.25) < 5 * 0.0097
    assert abs(lost.mean(axis=1) - 0.25).max() < 5 * 0.068
    assert len({row.tobytes() for row in lost}) == 50, "every round has draws of its own"
    assert len({column.tobytes() for column in lost.T}) == 40, "every client has draws of its own"
    # A higher probability loses the same uploads, and others.
    higher = FederationConfig(upload_failure_probability=0.75)
    assert all(upload_fails(higher, 5, 1, i) for i in np.flatnonzero(lost[0]).tolist())
    assert not any(upload_fails(FederationConfig(), 5, 1, i) for i in range(40))


def client_by_client(
    config: FederationConfig, seed: int, round_idx: int, sizes: Sequence[int]
) -> list[int]:
    """What `sample_cohort` draws without losses, computed with plain lists."""
    online = list(range(len(sizes)))
    if config.offline_probability:
        rng = generator(seed, "availability", round_idx)
        online = []
        while not online:
            draws = rng.random(len(sizes))
            online = [i for i in range(len(sizes)) if draws[i] >= config.offline_probability]
    count = min(config.clients_per_round, len(online))
    rng = generator(seed, "sampling", round_idx)
    weights = np.array([sizes[i] for i in online], float)
    shares = weights / weights.sum()
    if config.sampling == "uniform":
        return list(rng.choice(online, size=count, replace=False))
    if config.sampling == "size":
        return list(rng.choice(online, size=count, replace=False, p=shares))
    if config.sampling == "power_of_choice":
        num_candidates = min(2 * config.clients_per_round, len(online))
        return list(rng.choice(online, size=num_candidates, replace=False, p=shares))[:count]
    if config.sampling == "poisson":
        draws = rng.random(len(sizes))
        return [i for i in online if draws[i] < config.clients_per_round / len(sizes)]
    first = (round_idx - 1) * config.clients_per_round
    turns = [(first + i) % len(sizes) for i in range(len(sizes))]
    return [i for i in turns if i in set(online)][:count]


@pytest.mark.parametrize("offline", [0.0, 0.3, 0.9])
@pytest.mark.parametrize(
    "sampling", ["uniform", "size", "power_of_choice", "round_robin", "poisson"]
)
def test_draws_equal_those_of_a_plain_loop(sampling: Any, offline: float) -> None:
    sizes = [1 + (7 * i) % 11 for i in range(53)]
    for num_clients, per_round in ((53, 4), (53, 40), (3, 3)):
        config = FederationConfig(
            clients_per_round=per_round, sampling=sampling, offline_probability=offline
        )
        for round_idx in range(1, 60):
            cohort = sample_cohort(config, 5, round_idx, sizes[:num_clients], {})
            expected = client_by_client(config, 5, round_idx, sizes[:num_clients])
            assert cohort.client_ids == expected
            assert all(type(i) is int for i in cohort.client_ids)


def test_few_of_many_equal_those_of_a_plain_loop() -> None:
    # NumPy draws few of many by another method than few of few.
    sizes = [1] * 20_000
    for round_idx in range(1, 20):
        config = FederationConfig(clients_per_round=64)
        client_ids = sample_cohort(config, 0, round_idx, sizes, {}).client_ids
        assert client_ids == client_by_client(config, 0, round_idx, sizes)


@pytest.mark.parametrize("sampling", list(DRAWN))
def test_draws_are_those_of_earlier_versions(sampling: Any) -> None:
    drawn = list[list[int]]()
    for num_clients in (7, 1_000, 100_000):
        sizes = np.arange(num_clients) % 11 + 1
        losses = {i: (i * 7919 % 1009) / 1009 for i in range(0, num_clients, 3)}
        for offline in (0.0, 0.3):
            config = FederationConfig(
                sampling=sampling, clients_per_round=64, offline_probability=offline
            )
            for round_idx in (1, 2, 40):
                for known in (sizes, sizes.tolist()):
                    cohort = sample_cohort(config, 3, round_idx, known, losses)
                    drawn.append([cohort.num_online, *cohort.client_ids])
    assert hashlib.sha256(repr(drawn).encode()).hexdigest()[:32] == DRAWN[sampling]
