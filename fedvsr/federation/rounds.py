"""The round loop, a generator: sample, train, weigh, aggregate. Its events are for others to use.

P is the number of parameters.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fedvsr.algorithms.base import Aggregated, FedAvg
from fedvsr.energy import Meter
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome, Executor, Fault, TrainedClient
from fedvsr.federation.masking import LEAST_CLIENTS
from fedvsr.federation.privacy import add_noise
from fedvsr.federation.sampling import FederationConfig, sample_cohort, upload_fails
from fedvsr.messages import ClientReport, ClientTask, Round, Vectors
from fedvsr.params import FloatVector
from fedvsr.seeding import derive_seed
from fedvsr.training.updates import UpdateConfig


@dataclass(frozen=True)
class RunState:
    """All that a run carries from one round to the next."""

    round_idx: int
    """RoundSetup finished."""
    server: Vectors
    """The server's vectors (P,): the global parameters, and what the algorithm keeps."""
    losses: Mapping[int, float]
    """By client, the last loss that reached the server; of this round alone, unless
    `federation.sampling` draws by losses."""

    @property
    def params(self) -> FloatVector:
        """Global parameters (P,)."""
        return self.server["params"]


@dataclass(frozen=True)
class ClientFinished:
    """A client of the current round has finished its training."""

    report: ClientReport
    num_finished: int
    num_sampled: int


@dataclass(frozen=True)
class RoundFinished:
    """A round is aggregated. Lists are in sampled order."""

    state: RunState
    outcomes: list[ClientOutcome]
    weights: list[float] | None
    """None if the algorithm gives no shares, or no update has arrived; 0 for a client that is
    rejected or whose upload was lost."""
    started_at: float
    """When the first task was sent, seconds since 1970."""
    num_failed: int
    """Clients that gave no update; they are in no list."""
    gap_s: float | None
    """Idle seconds between the previous round's last update and this round's first step."""
    train_s: float
    """Wall seconds from the first task to the last report."""
    aggregate_s: float
    """Wall seconds of weighing and summing."""
    aggregate_j: float | None
    """Joules of all processors of the driver's machine meanwhile; None if unknown."""
    num_online: int
    """Clients that could be reached."""
    download_bytes: int
    """Bytes sent to all clients together."""

    @property
    def reports(self) -> list[ClientReport]:
        """The clients' reports."""
        return [outcome.report for outcome in self.outcomes]

    @property
    def num_upload_failures(self) -> int:
        """Clients whose update was lost on its way."""
        return sum(outcome.upload_failed for outcome in self.outcomes)


@dataclass(frozen=True)
class RoundSetup:
    """Everything that stays the same from round to round.

    Args:
        algorithm: weighs and aggregates the updates.
        config: number of rounds and sampling.
        update: clipping, noise, compression and rejection of updates.
        sizes: frames that each registered client holds, by client id.
        tensors: where in a vector (P,) each parameter tensor lies.
        seed: root of every random draw.
    """

    algorithm: FedAvg
    config: FederationConfig
    update: UpdateConfig
    sizes: Sequence[int] | npt.NDArray[np.int64]
    tensors: tuple[slice, ...]
    seed: int

    def tasks(self, client_ids: Sequence[int], round_idx: int) -> list[ClientTask]:
        """A task for each client of a round."""
        return [
            ClientTask(
                client_id=client_id,
                round_idx=round_idx,
                num_rounds=self.config.num_rounds,
                seed=derive_seed(self.seed, "client", client_id, round_idx),
            )
            for client_id in client_ids
        ]

    def sent(self, outcome: ClientOutcome) -> ClientOutcome:
        """The outcome after its upload, which may be lost. A diverged client sends nothing."""
        report = outcome.report
        lost = report.finite and upload_fails(
            self.config, self.seed, report.round_idx, report.client_id
        )
        return replace(outcome, upload_failed=lost)

    def upcoming(self, round_idx: int) -> list[int]:
        """The clients of the round after this one, as far as they are known already."""
        if round_idx >= self.config.num_rounds or not self.config.knows_cohorts:
            return []
        return sample_cohort(self.config, self.seed, round_idx + 1, self.sizes, {}).client_ids


def run_rounds(
    state: RunState, setup: RoundSetup, executor: Executor, states: ClientStates
) -> Iterator[ClientFinished | Fault | RoundFinished]:
    """Run the rounds that remain after `state`.

    A round depends only on `state`, on what the clients remember, on the seed and on its index, so
    a run that resumes from its last state ends with the bits of a run that was never stopped.

    Args:
        state: the state after the last finished round.
        setup: what stays the same from round to round.
        executor: trains the clients.
        states: what clients remember between their rounds.

    Raises:
        UserError: a round has no finite update, or fewer than `federation.min_updates`.
        Exception: the client's own error, if fewer than `federation.min_updates` clients remain.
        LostError: what a client remembers is lost; the state of the run and those of the clients
            must be taken from a checkpoint.
    """
    last_update_at: float | None = None
    for round_idx in range(state.round_idx + 1, setup.config.num_rounds + 1):
        cohort = sample_cohort(setup.config, setup.seed, round_idx, setup.sizes, state.losses)
        tasks = setup.tasks(cohort.client_ids, round_idx)
        shared = {name: state.server[name] for name in setup.algorithm.broadcast}
        started_at, started = time.time(), time.perf_counter()
        arrivals = executor.run_round(tasks, shared, states, setup.upcoming(round_idx))
        trained = yield from _train(arrivals, tasks, setup.config)
        train_s, summing = time.perf_counter() - started, time.perf_counter()
        steps_at = [client.outcome.report.started_at for client in trained]
        first_step_at = min(steps_at, default=started_at)
        gap_s = None if last_update_at is None else max(0.0, first_step_at - last_update_at)
        last_update_at = time.time()
        with Meter() as meter:
            result = yield from _aggregate(state, trained, len(tasks), setup, executor)
            while not isinstance(result, _Summed):
                again = [t for t in tasks if (lost := result.get(t.client_id)) and not lost.final]
                arrivals = executor.run_round(again, shared, states)
                trained = yield from _train_again(arrivals, result, trained, tasks, setup.config)
                result = yield from _aggregate(state, trained, len(tasks), setup, executor)
        _remember(trained, states)
        # Frees the memory of the updates.
        del trained
        state, outcomes = result.state, result.outcomes
        yield RoundFinished(
            state=state,
            outcomes=outcomes,
            weights=result.weights,
            started_at=started_at,
            num_failed=len(tasks) - len(outcomes),
            gap_s=gap_s,
            train_s=train_s,
            aggregate_s=time.perf_counter() - summing,
            aggregate_j=meter.energy_j,
            num_online=cohort.num_online,
            download_bytes=len(tasks) * sum(vector.nbytes for vector in shared.values()),
        )


def _train(
    arrivals: Iterator[TrainedClient | Fault], tasks: Sequence[ClientTask], config: FederationConfig
) -> Generator[ClientFinished | Fault, None, list[TrainedClient]]:
    """Pass on what happens while a round trains, and return its clients in sampled order.

    Sampled order, whatever the order of arrival: a sum must not depend on timing.

    Raises:
        Exception: the client's own error, if too few clients remain.
    """
    finished = dict[int, TrainedClient]()
    num_failed = 0
    needed = min(config.min_updates or len(tasks), len(tasks))
    for arrival in arrivals:
        if isinstance(arrival, Fault):
            num_failed += arrival.final
            yield arrival
            if len(tasks) - num_failed < needed:
                raise arrival.error or RuntimeError(arrival.message)
            continue
        report = arrival.outcome.report
        finished[report.client_id] = arrival
        if not report.finite:
            yield _not_finite(arrival.outcome)
        yield ClientFinished(report, len(finished), len(tasks))
    return [finished[task.client_id] for task in tasks if task.client_id in finished]


def _require_updates(
    outcomes: Sequence[ClientOutcome], num_tasks: int, round_idx: int, config: FederationConfig
) -> None:
    """Raise UserError if too few of a round's updates are finite, whether or not they arrive."""
    num_finite = sum(outcome.report.finite for outcome in outcomes)
    if num_tasks and not num_finite:
        raise UserError(
            f"no update of round {round_idx} is finite, of {num_tasks} clients; lower local.lr"
        )
    needed = min(config.min_updates or 0, num_tasks)
    if num_finite < needed:
        raise UserError(
            f"round {round_idx} has {num_finite} finite updates, fewer than "
            f"federation.min_updates = {needed}; lower it, or local.lr"
        )


def _train_again(
    arrivals: Iterator[TrainedClient | Fault],
    lost: Mapping[int, Fault],
    trained: Sequence[TrainedClient],
    tasks: Sequence[ClientTask],
    config: FederationConfig,
) -> Generator[Fault, None, list[TrainedClient]]:
    """Let the clients train again whose update was lost; returns the round's, in sampled order.

    Args:
        arrivals: what happens while these train.
        lost: their faults; those that are final leave the round without their client.
        trained: all clients of the round.
        tasks: all tasks of the round.
        config: how many clients the round needs.

    Raises:
        Exception: the client's own error, if too few clients remain.
    """
    by_client = {client.outcome.report.client_id: client for client in trained}
    faults = list(lost.values())
    for arrival in arrivals:
        if isinstance(arrival, TrainedClient):
            by_client[arrival.outcome.report.client_id] = arrival
        else:
            yield arrival
            faults.append(arrival)
    for fault in faults:
        if fault.final and fault.client_id is not None:
            del by_client[fault.client_id]
            if len(by_client) < min(config.min_updates or len(tasks), len(tasks)):
                raise fault.error or RuntimeError(fault.message)
    return [by_client[task.client_id] for task in tasks if task.client_id in by_client]


def _remember(trained: Sequence[TrainedClient], states: ClientStates) -> None:
    """Store what the clients are to remember.

    A client does not know that its upload was lost, so it remembers this round all the same.
    """
    for client in trained:
        report = client.outcome.report
        if report.finite:
            states.put(report.client_id, report.round_idx, client.update.state)


@dataclass(frozen=True)
class _Summed:
    state: RunState
    outcomes: list[ClientOutcome]
    """The outcomes of all clients that trained, in sampled order."""
    weights: list[float] | None
    """The shares of these clients; None if there are no shares."""


def _aggregate(
    state: RunState,
    trained: Sequence[TrainedClient],
    num_tasks: int,
    setup: RoundSetup,
    executor: Executor,
) -> Generator[Fault, None, _Summed | dict[int, Fault]]:
    """Make the next state from a round's updates.

    Returns:
        The result; or, by client, the faults of updates that are lost.

    Raises:
        UserError: too few updates are finite.
    """
    algorithm, config, update = setup.algorithm, setup.config, setup.update
    round_idx = state.round_idx + 1
    outcomes = [setup.sent(client.outcome) for client in trained]
    _require_updates(outcomes, num_tasks, round_idx, config)
    clients = [client for client, o in zip(trained, outcomes, strict=True) if o.accepted]
    reports = [client.outcome.report for client in clients]
    round_info = Round(round_idx, config.num_rounds, len(setup.sizes), len(reports), setup.tensors)
    aggregated = Aggregated({"params": state.params}, None)
    has_sum = len(reports) >= (LEAST_CLIENTS if update.secure_sum else 1)
    if reports and not has_sum:
        yield _alone(reports[0])
    if has_sum:
        weights = algorithm.weights(reports, config.num_rounds)
        if update.noise_multiplier:
            # A cohort that fell short must not make each of its clients count for more.
            weights = [1 / config.clients_per_round] * len(reports)
        lost = dict[int, Fault]()
        work = RoundSum(algorithm, clients, weights, state.server, round_info)
        for event in executor.aggregate(work):
            if isinstance(event, Aggregated):
                aggregated = event
                continue
            yield event
            if event.client_id is not None:
                lost[event.client_id] = event
        if lost:
            return lost
    vectors = aggregated.vectors
    if update.noise_multiplier:
        noisy = add_noise(
            vectors["params"], update, config.clients_per_round, setup.seed, round_idx
        )
        vectors = {**vectors, "params": noisy}
    server = state.server
    if has_sum or update.noise_multiplier:
        server = algorithm.server_step(server, vectors, round_info)
    losses = {report.client_id: report.loss for report in reports}
    known = {} if config.knows_cohorts else state.losses
    next_state = RunState(round_idx, server, {**known, **losses})
    return _Summed(next_state, outcomes, _shares(aggregated.weights, reports, outcomes))


def _alone(report: ClientReport) -> Fault:
    return Fault(
        report.round_idx,
        report.client_id,
        "alone",
        f"client {report.client_id} is the only one left of round {report.round_idx}: "
        "update.secure_sum does not reveal its update, and the global network stays as it is",
        final=True,
        lost_s=report.train_s,
    )


def _shares(
    weights: Sequence[float] | None,
    reports: Sequence[ClientReport],
    outcomes: Sequence[ClientOutcome],
) -> list[float] | None:
    """The weights of all clients that trained; 0 for those whose update is not in the sum."""
    if weights is None:
        return None
    by_client = {r.client_id: weight for r, weight in zip(reports, weights, strict=True)}
    return [by_client.get(outcome.report.client_id, 0.0) for outcome in outcomes]


def _not_finite(outcome: ClientOutcome) -> Fault:
    report = outcome.report
    return Fault(
        report.round_idx,
        report.client_id,
        "not_finite",
        f"the loss or the update of client {report.client_id} is not finite; it is left out",
        attempt=outcome.attempts,
        final=True,
        lost_s=report.train_s,
        node=outcome.node,
    )
