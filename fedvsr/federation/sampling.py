"""Which clients train in a round. K registered clients, of which each is online or not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import Section
from fedvsr.seeding import generator

_Ids = npt.NDArray[np.int64]


class FederationConfig(Section):
    """How many rounds, and which clients train in each."""

    num_rounds: int = Field(100, ge=1, le=1_000_000, description="Communication rounds T.")
    clients_per_round: int = Field(
        4, ge=1, description="Clients sampled each round; fewer where fewer are online."
    )
    sampling: Literal["uniform", "size", "power_of_choice", "round_robin", "poisson"] = Field(
        "uniform",
        description="Without replacement: uniform; by size (with algorithm.weights=uniform, which "
        "counts size once); power_of_choice, those of the highest last loss among candidates drawn "
        "by size (Cho et al. 2020); or in turns. poisson: each by itself, clients_per_round on "
        "average, perhaps none (for differential privacy).",
    )
    num_candidates: int | None = Field(
        None, ge=1, description="power_of_choice: candidates d (default: twice clients_per_round)."
    )
    offline_probability: float = Field(
        0.0, ge=0, lt=1, description="That a client cannot be reached in a round."
    )
    min_updates: int | None = Field(
        None,
        ge=1,
        description="Updates with which a round closes though other clients keep failing "
        "(default: every sampled client's).",
    )

    def model_post_init(self, _: object) -> None:
        """Check what one field alone cannot show."""
        if self.min_updates is not None and self.min_updates > self.clients_per_round:
            raise UserError(
                f"federation.min_updates = {self.min_updates} is more than "
                f"federation.clients_per_round = {self.clients_per_round}"
            )

    @property
    def knows_cohorts(self) -> bool:
        """Whether a round's cohort is known before the round before it has ended."""
        return self.sampling != "power_of_choice"


@dataclass(frozen=True)
class Cohort:
    """A round's clients."""

    client_ids: list[int]
    """In the order they were drawn, which is the order of aggregation."""
    num_online: int


def sample_cohort(
    config: FederationConfig,
    seed: int,
    round_idx: int,
    sizes: Sequence[int],
    losses: Mapping[int, float],
) -> Cohort:
    """Draw a round's clients.

    Args:
        config: how.
        seed: root of the draws; a round's depend on it and its index alone.
        round_idx: from 1.
        sizes: frames of each of the K clients.
        losses: the last reported loss by client. Those that never trained count as the highest.
    """
    online = _online(config.offline_probability, seed, round_idx, len(sizes))
    count = min(config.clients_per_round, len(online))
    rng = generator(seed, "sampling", round_idx)
    # In arrays, and weighed only where asked for: 100,000 clients that stay at home cost nothing.
    drawn: list[int]
    if config.sampling == "uniform":
        drawn = rng.choice(online, size=count, replace=False).tolist()
    elif config.sampling == "size":
        drawn = rng.choice(online, size=count, replace=False, p=_by_size(sizes, online)).tolist()
    elif config.sampling == "power_of_choice":
        wanted = config.num_candidates or 2 * config.clients_per_round
        several = min(max(wanted, count), len(online))
        by_size = _by_size(sizes, online)
        candidates = rng.choice(online, size=several, replace=False, p=by_size).tolist()
        # Stable: those alike stay in the order they were drawn.
        candidates.sort(key=lambda i: -losses.get(i, math.inf))
        drawn = candidates[:count]
    elif config.sampling == "poisson":
        chance = config.clients_per_round / len(sizes)
        chosen = rng.random(len(sizes)) < chance
        drawn = online[chosen[online]].tolist()
    else:
        # From the first whose turn it is, then round to those before.
        first = (round_idx - 1) * config.clients_per_round % len(sizes)
        turn = int(np.searchsorted(online, first))
        drawn = [*online[turn : turn + count].tolist(), *online[: min(turn, count)].tolist()][
            :count
        ]
    return Cohort(drawn, len(online))


def _by_size(sizes: Sequence[int], online: _Ids) -> npt.NDArray[np.float64]:
    weights = np.asarray(sizes, float)[online]
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def _online(offline_probability: float, seed: int, round_idx: int, num_clients: int) -> _Ids:
    """Who can be reached, rising."""
    if offline_probability == 0:
        return np.arange(num_clients)
    # With nobody online a server waits until somebody is.
    rng = generator(seed, "availability", round_idx)
    while not (online := np.flatnonzero(rng.random(num_clients) >= offline_probability)).size:
        pass
    return online
