"""The round loop, as a generator: sample, train, weigh, aggregate. What it yields is for others."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from fedvsr.algorithms.base import Aggregated, FedAvg
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome, Executor, Fault
from fedvsr.federation.privacy import add_noise
from fedvsr.federation.sampling import FederationConfig, sample_cohort
from fedvsr.messages import ClientReport, ClientTask, Round, Vectors
from fedvsr.params import FloatVector
from fedvsr.seeding import derive_seed
from fedvsr.training.updates import UpdateConfig, incoming


@dataclass(frozen=True)
class RunState:
    """All that a run carries from one round to the next."""

    round_idx: int
    """Rounds finished."""
    server: Vectors
    """The server's vectors (P,): the global parameters, and what the algorithm keeps."""
    losses: Mapping[int, float]
    """The last reported loss of every client that has trained."""

    @property
    def params(self) -> FloatVector:
        """Global parameters (P,)."""
        return self.server["params"]


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
    outcomes: list[ClientOutcome]
    weights: list[float] | None
    """None where the algorithm gives no shares; 0 for a rejected client."""
    started_at: float
    """When the first task was sent, seconds since 1970."""
    num_failed: int
    """Clients that were given up; they are in no list."""
    gap_s: float | None
    """Wall seconds from the last update of the round before to the first step of this one."""
    train_s: float
    """Wall seconds from the first task to the last report."""
    aggregate_s: float
    num_online: int
    """Clients that could be reached."""
    download_bytes: int
    """Sent to the clients, all together."""

    @property
    def reports(self) -> list[ClientReport]:
        """The clients' reports."""
        return [outcome.report for outcome in self.outcomes]


def run_rounds(
    state: RunState,
    *,
    algorithm: FedAvg,
    executor: Executor,
    config: FederationConfig,
    sizes: Sequence[int],
    tensors: tuple[slice, ...],
    update: UpdateConfig,
    seed: int,
    states: ClientStates,
) -> Iterator[ClientFinished | Fault | RoundFinished]:
    """Run the rounds that `state` has still to go.

    A round depends on `state`, what the clients remember, the seed and its index alone, so a run
    that was stopped and goes on from its last state ends in the same bits as one that never did.
    `sizes` are the frames of each registered client, `tensors` the parts of a vector.

    Raises:
        UserError: no client of a round sent a finite update.
        Exception: what a client failed of, where fewer than `min_updates` are left.
    """
    last_update_at: float | None = None
    for round_idx in range(state.round_idx + 1, config.num_rounds + 1):
        cohort = sample_cohort(config, seed, round_idx, sizes, state.losses)
        tasks = [
            ClientTask(
                client_id=client_id,
                round_idx=round_idx,
                num_rounds=config.num_rounds,
                seed=derive_seed(seed, "client", client_id, round_idx),
            )
            for client_id in cohort.client_ids
        ]
        upcoming = list[int]()
        if round_idx < config.num_rounds and config.knows_cohorts:
            upcoming = sample_cohort(config, seed, round_idx + 1, sizes, {}).client_ids
        started_at, started = time.time(), time.perf_counter()
        finished = dict[int, ClientOutcome]()
        num_failed = 0
        shared = {name: state.server[name] for name in algorithm.broadcast}
        for outcome in executor.run_round(tasks, shared, states, upcoming):
            if isinstance(outcome, Fault):
                num_failed += outcome.final
                yield outcome
                if len(tasks) - num_failed < min(config.min_updates or len(tasks), len(tasks)):
                    raise outcome.error or RuntimeError(outcome.message)
                continue
            finished[outcome.report.client_id] = outcome
            if not outcome.report.finite:
                yield _not_finite(outcome)
            yield ClientFinished(outcome.report, len(finished), len(tasks))
        trained = time.perf_counter()
        first_step_at = min((o.report.started_at for o in finished.values()), default=started_at)
        gap_s = None if last_update_at is None else max(0.0, first_step_at - last_update_at)
        last_update_at = time.time()
        # In sampled order, whatever the order of arrival: the sum must not depend on timing. All
        # reports come first, because a weight may depend on every client's loss; the vectors wait
        # where they are and are fetched one at a time.
        outcomes = [finished[task.client_id] for task in tasks if task.client_id in finished]
        accepted = [outcome for outcome in outcomes if outcome.report.finite]
        if tasks and not accepted:
            raise UserError(
                f"no update of round {round_idx} is finite, of {len(tasks)} clients; lower local.lr"
            )
        needed = min(config.min_updates or 0, len(tasks))
        if len(accepted) < needed:
            raise UserError(
                f"round {round_idx} has {len(accepted)} finite updates, fewer than "
                f"federation.min_updates = {needed}; lower it, or local.lr"
            )
        reports = [outcome.report for outcome in accepted]
        this = Round(round_idx, config.num_rounds, len(sizes), len(accepted), tensors)
        aggregated = Aggregated({"params": state.params}, None)
        if accepted:
            weights = algorithm.weights(reports, config.num_rounds)
            if update.noise_multiplier:
                # A cohort that fell short must not make each of its clients count for more.
                weights = [1 / config.clients_per_round] * len(accepted)
            uploads = _uploads(accepted, state.params, states)
            aggregated = algorithm.aggregate(uploads, weights, state.server, this)
        vectors = aggregated.vectors
        if update.noise_multiplier:
            noisy = add_noise(vectors["params"], update, config.clients_per_round, seed, round_idx)
            vectors = {**vectors, "params": noisy}
        server = state.server
        if accepted or update.noise_multiplier:
            server = algorithm.server_step(server, vectors, this)
        losses = {report.client_id: report.loss for report in reports}
        state = RunState(round_idx, server, {**state.losses, **losses})
        yield RoundFinished(
            state=state,
            outcomes=outcomes,
            weights=_shares(aggregated.weights, reports, outcomes),
            started_at=started_at,
            num_failed=num_failed,
            gap_s=gap_s,
            train_s=trained - started,
            aggregate_s=time.perf_counter() - trained,
            num_online=cohort.num_online,
            download_bytes=len(tasks) * sum(vector.nbytes for vector in shared.values()),
        )


def _shares(
    weights: Sequence[float] | None,
    reports: Sequence[ClientReport],
    outcomes: Sequence[ClientOutcome],
) -> list[float] | None:
    """The weights of all who trained: those who were rejected have none."""
    if weights is None:
        return None
    by_client = {r.client_id: weight for r, weight in zip(reports, weights, strict=True)}
    return [by_client.get(outcome.report.client_id, 0.0) for outcome in outcomes]


def _not_finite(outcome: ClientOutcome) -> Fault:
    report = outcome.report
    message = f"client {report.client_id}'s loss or update is not finite; it does not count"
    return Fault(
        report.round_idx,
        report.client_id,
        "not_finite",
        message,
        attempt=outcome.attempts,
        final=True,
        lost_s=report.train_s,
        node=outcome.node,
    )


def _uploads(
    outcomes: Sequence[ClientOutcome], params: FloatVector, states: ClientStates
) -> Iterator[Vectors]:
    """Fetch one client's update after the other, and keep what it is to remember."""
    for outcome in outcomes:
        update = outcome.fetch()
        states.put(outcome.report.client_id, outcome.report.round_idx, update.state)
        yield {name: incoming(vector, params) for name, vector in update.upload.items()}
