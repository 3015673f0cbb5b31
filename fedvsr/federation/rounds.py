"""The round loop, as a generator: sample, train, weigh, aggregate. What it yields is for others."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pydantic import Field

from fedvsr.algorithms._base import FedAvg
from fedvsr.federation.executors import ClientOutcome, Executor
from fedvsr.messages import ClientReport, ClientTask
from fedvsr.params import FloatVector
from fedvsr.section import Section
from fedvsr.seeding import derive_seed, generator


class FederationConfig(Section):
    """How many rounds, and how many clients train in each."""

    num_rounds: int = Field(100, ge=1, le=1_000_000, description="Communication rounds T.")
    clients_per_round: int = Field(4, ge=1, description="Clients sampled each round.")


@dataclass(frozen=True)
class RunState:
    """All that a run carries from one round to the next."""

    round_idx: int
    """Rounds finished."""
    params: FloatVector
    """Global parameters (P,)."""


@dataclass(frozen=True)
class ClientFinished:
    """One client of the current round is done."""

    report: ClientReport
    num_finished: int
    num_sampled: int


@dataclass(frozen=True)
class RoundFinished:
    """A round is aggregated. Lists are in sampled order."""

    state: RunState
    reports: list[ClientReport]
    weights: list[float]
    attempts: list[int]
    train_s: float
    """Wall seconds from the first task to the last report."""
    aggregate_s: float


def run_rounds(
    state: RunState,
    *,
    algorithm: FedAvg,
    executor: Executor,
    config: FederationConfig,
    num_clients: int,
    seed: int,
) -> Iterator[ClientFinished | RoundFinished]:
    """Run the rounds that `state` has still to go.

    A round depends on `state`, the seed and its index alone, so a run that was stopped and goes on
    from its last state ends in the same bits as one that never stopped.
    """
    for round_idx in range(state.round_idx + 1, config.num_rounds + 1):
        tasks = [
            ClientTask(
                client_id=client_id,
                round_idx=round_idx,
                num_rounds=config.num_rounds,
                seed=derive_seed(seed, "client", client_id, round_idx),
            )
            for client_id in sample_clients(seed, round_idx, num_clients, config.clients_per_round)
        ]
        started = time.perf_counter()
        finished = dict[int, ClientOutcome]()
        for outcome in executor.run_round(tasks, state.params):
            finished[outcome.report.client_id] = outcome
            yield ClientFinished(outcome.report, len(finished), len(tasks))
        trained = time.perf_counter()
        # In sampled order, whatever the order of arrival: the sum must not depend on timing. All
        # reports come first, because a weight may depend on every client's loss; the vectors wait
        # where they are and are fetched one at a time.
        outcomes = [finished[task.client_id] for task in tasks]
        reports = [outcome.report for outcome in outcomes]
        weights = algorithm.weights(reports, config.num_rounds)
        params = algorithm.aggregate((outcome.fetch() for outcome in outcomes), weights)
        state = RunState(round_idx, params)
        yield RoundFinished(
            state=state,
            reports=reports,
            weights=weights,
            attempts=[outcome.attempts for outcome in outcomes],
            train_s=trained - started,
            aggregate_s=time.perf_counter() - trained,
        )


def sample_clients(seed: int, round_idx: int, num_clients: int, cohort: int) -> list[int]:
    """The clients of a round: uniform, without replacement, in the order they were drawn."""
    rng = generator(seed, "sampling", round_idx)
    drawn: list[int] = rng.choice(num_clients, size=cohort, replace=False).tolist()
    return drawn
