"""Which clients train in a round, and whose uploads arrive. K clients are registered."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from fedvsr.errors import UserError
from fedvsr.section import OnlyWith, Section
from fedvsr.seeding import generator

_Ids = npt.NDArray[np.int64]


class FederationConfig(Section):
    """The number of rounds, and which clients train in each."""

    num_rounds: int = Field(100, ge=1, le=1_000_000, description="Communication rounds T.")
    clients_per_round: int = Field(
        4, ge=1, description="Clients sampled per round; fewer if fewer are online."
    )
    sampling: Literal["uniform", "size", "power_of_choice", "round_robin", "poisson"] = Field(
        "uniform",
        description="How clients are sampled, without replacement. uniform: all alike; size: by "
        "their number of frames (combine it with algorithm.weights=uniform, or size counts twice); "
        "power_of_choice: of candidates drawn by size, those with the highest last loss (Cho et "
        "al. 2020); round_robin: in turns; poisson: each client independently, clients_per_round "
        "on average and perhaps none (for differential privacy).",
    )
    num_candidates: Annotated[int | None, OnlyWith("sampling", "power_of_choice")] = Field(
        None, ge=1, description="power_of_choice: candidates d (default: twice clients_per_round)."
    )
    offline_probability: float = Field(
        0.0, ge=0, lt=1, description="Probability that a client cannot be reached in a round."
    )
    upload_failure_probability: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Probability that a client's upload is lost after its training: the client "
        "keeps what it remembers, and the round closes with the others' updates. If all are lost, "
        "the global network stays as it is.",
    )
    min_updates: int | None = Field(
        None,
        ge=1,
        description="Updates that suffice to close a round if other clients keep failing "
        "(default: those of all sampled clients). Updates that upload_failure_probability loses "
        "count as made.",
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
        """Whether a round's cohort can be drawn before the previous round has ended."""
        return self.sampling != "power_of_choice"


@dataclass(frozen=True)
class Cohort:
    """A round's clients."""

    client_ids: list[int]
    """The sampled clients in the order of the draw, which is the order of aggregation."""
    num_online: int
    """Clients that could be reached."""


def upload_fails(config: FederationConfig, seed: int, round_idx: int, client_id: int) -> bool:
    """Draw whether a client's upload is lost: by round and client, whatever else has happened."""
    probability = config.upload_failure_probability
    if probability == 0:
        return False
    return bool(generator(seed, "upload", client_id, round_idx).random() < probability)


def sample_cohort(
    config: FederationConfig,
    seed: int,
    round_idx: int,
    sizes: Sequence[int] | _Ids,
    losses: Mapping[int, float],
) -> Cohort:
    """Draw a round's clients.

    Args:
        config: how to sample.
        seed: root of the draws; those of a round depend only on it and on the round's index.
        round_idx: the round, from 1.
        sizes: frames of each of the K clients.
        losses: the last reported loss by client. Clients without one count as the highest.
    """
    online = _online(config.offline_probability, seed, round_idx, len(sizes))
    count = min(config.clients_per_round, len(online))
    rng = generator(seed, "sampling", round_idx)
    # Arrays, and weights only on demand, keep 100,000 clients that are not drawn cheap.
    drawn: list[int]
    if config.sampling == "uniform":
        drawn = rng.choice(online, size=count, replace=False).tolist()
    elif config.sampling == "size":
        drawn = rng.choice(online, size=count, replace=False, p=_by_size(sizes, online)).tolist()
    elif config.sampling == "power_of_choice":
        wanted = config.num_candidates or 2 * config.clients_per_round
        num_candidates = min(max(wanted, count), len(online))
        by_size = _by_size(sizes, online)
        candidates = rng.choice(online, size=num_candidates, replace=False, p=by_size).tolist()
        # Stable: candidates with equal losses keep the order of the draw.
        candidates.sort(key=lambda i: -losses.get(i, math.inf))
        drawn = candidates[:count]
    elif config.sampling == "poisson":
        probability = config.clients_per_round / len(sizes)
        chosen = rng.random(len(sizes)) < probability
        drawn = online[chosen[online]].tolist()
    else:
        # From the first client whose turn it is to the last one, then from the beginning.
        first = (round_idx - 1) * config.clients_per_round % len(sizes)
        turn = int(np.searchsorted(online, first))
        drawn = [*online[turn : turn + count].tolist(), *online[: min(turn, count)].tolist()][
            :count
        ]
    return Cohort(drawn, len(online))


def _by_size(sizes: Sequence[int] | _Ids, online: _Ids) -> npt.NDArray[np.float64]:
    weights = np.asarray(sizes, float)[online]
    shares: npt.NDArray[np.float64] = weights / weights.sum()
    return shares


def _online(offline_probability: float, seed: int, round_idx: int, num_clients: int) -> _Ids:
    """Ids of the clients that can be reached, ascending; at least one."""
    if offline_probability == 0:
        return np.arange(num_clients)
    # If no client is online, the server waits until one is.
    rng = generator(seed, "availability", round_idx)
    while not (online := np.flatnonzero(rng.random(num_clients) >= offline_probability)).size:
        pass
    return online
