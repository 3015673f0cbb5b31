from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fedvsr import algorithms
from fedvsr.algorithms import fedavg, fedvsr, scaffold
from fedvsr.algorithms.base import Aggregated
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum, aggregate_here
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome, Fault, Scorer, TrainedClient
from fedvsr.federation.rounds import (
    ClientFinished,
    RoundFinished,
    RoundSetup,
    RunState,
    run_rounds,
)
from fedvsr.federation.sampling import FederationConfig
from fedvsr.inference.evaluate import Evaluator
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.section import NamedSection
from fedvsr.seeding import derive_seed
from fedvsr.training.updates import UNCHANGED, UpdateConfig

CONFIG = FederationConfig(num_rounds=4, clients_per_round=3)


class Shuffling:
    """An executor without a network: a client adds noise of its task's seed, in a set order."""

    name = "shuffling"

    def __init__(self, order: Sequence[int], broken: Collection[int] = ()) -> None:
        self.order = order
        # Places in the sample whose clients diverge.
        self.broken = broken

    def run_round(
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        for i in self.order:
            task = tasks[i]
            if i in self.broken:
                report = ClientReport(
                    task.client_id, task.round_idx, 1, 1, math.nan, math.nan, 0.0, finite=False
                )
                yield TrainedClient(ClientOutcome(report), ClientUpdate({}, {}))
                continue
            noise = np.random.default_rng(task.seed).standard_normal(50)
            update = (shared["params"] + 1e3 * noise).astype(np.float32)
            loss = 1 + task.client_id
            report = ClientReport(task.client_id, task.round_idx, 1, 1, loss, loss, 0.0)
            remembered = {"own": update}
            sent = {"params": update, "control_change": update}
            yield TrainedClient(ClientOutcome(report), ClientUpdate(sent, remembered))

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        yield aggregate_here(work)

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        raise AssertionError("the round loop scores nothing")

    def close(self) -> None:
        pass


def rounds(
    order: Sequence[int],
    state: RunState,
    algorithm: NamedSection,
    broken: Collection[int] = (),
    update: UpdateConfig = UNCHANGED,
    config: FederationConfig = CONFIG,
    states: ClientStates | None = None,
) -> list[ClientFinished | Fault | RoundFinished]:
    return list(
        run_rounds(
            state,
            RoundSetup(algorithms.build(algorithm), config, update, [4] * 10, (), seed=7),
            Shuffling(order, broken),
            states or ClientStates(),
        )
    )


def start() -> RunState:
    return RunState(0, {"params": np.zeros(50, np.float32)}, {})


@pytest.mark.parametrize("algorithm", [fedavg.Config(), fedvsr.Config()])
def test_order_of_arrival_changes_no_bit(algorithm: NamedSection) -> None:
    one, other = (rounds(order, start(), algorithm) for order in ([0, 1, 2], [2, 0, 1]))
    assert isinstance(one[-1], RoundFinished)
    assert isinstance(other[-1], RoundFinished)
    assert one[-1].state.params.tobytes() == other[-1].state.params.tobytes()
    assert one[-1].weights == other[-1].weights
    assert one[-1].reports == other[-1].reports, "reports come in sampled order"


def test_resuming_from_a_state_equals_never_having_stopped() -> None:
    events = rounds([0, 1, 2], start(), fedvsr.Config())
    finished = [event for event in events if isinstance(event, RoundFinished)]
    assert [event.state.round_idx for event in finished] == [1, 2, 3, 4]
    resumed = rounds([0, 1, 2], finished[1].state, fedvsr.Config())[-1]
    assert isinstance(resumed, RoundFinished)
    assert resumed.state.params.tobytes() == finished[-1].state.params.tobytes()


def test_losses_are_kept_only_for_a_sampling_that_draws_by_them() -> None:
    for sampling, least in (("uniform", 3), ("power_of_choice", 4)):
        config = CONFIG.model_copy(update={"sampling": sampling})
        events = rounds([0, 1, 2], start(), fedavg.Config(), config=config)
        last = [event for event in events if isinstance(event, RoundFinished)][-1]
        assert last.state.losses.items() >= {r.client_id: r.loss for r in last.reports}.items()
        assert len(last.state.losses) >= least
        assert (len(last.state.losses) == 3) == (sampling == "uniform")


def test_events_count_the_clients_of_a_round() -> None:
    events = rounds([2, 1, 0], start(), fedavg.Config())[:4]
    assert [e.num_finished for e in events if isinstance(e, ClientFinished)] == [1, 2, 3]
    assert isinstance(events[3], RoundFinished)


def test_a_round_goes_on_without_clients_that_diverged() -> None:
    events = [rounds([0, 1, 2], start(), fedavg.Config(), broken) for broken in ((), (1,))]
    all_three, two = ([e for e in each if isinstance(e, RoundFinished)] for each in events)
    assert two[0].weights == [0.5, 0.0, 0.5]
    assert [report.finite for report in two[0].reports] == [True, False, True]
    rejected = two[0].reports[1].client_id
    assert set(two[0].state.losses) == {r.client_id for r in two[0].reports} - {rejected}
    # The mean of three, minus the missing one.
    whole, part = (found[0].state.params.astype(float) for found in (all_three, two))
    missing = 3 * whole - 2 * part
    seed = derive_seed(7, "client", rejected, 1)
    own = 1e3 * np.random.default_rng(seed).standard_normal(50)
    np.testing.assert_allclose(missing, own, atol=0.01)


def test_a_round_without_any_finite_update_is_an_error() -> None:
    with pytest.raises(UserError, match=r"no update of round 1 is finite, of 3 clients"):
        rounds([0, 1, 2], start(), fedavg.Config(), broken=(0, 1, 2))


def test_under_noise_a_missing_client_counts_as_one_that_did_not_move() -> None:
    private = UpdateConfig(clip_norm=1, noise_multiplier=1e-9)
    events = rounds([0, 1, 2], start(), fedavg.Config(weights="uniform"), (1,), private)
    first = next(event for event in events if isinstance(event, RoundFinished))
    assert first.weights == pytest.approx([1 / 3, 0, 1 / 3])


# Seed 7 loses, of the three uploads of each round: 1, 3, 0 and 2.
LOSSY = CONFIG.model_copy(update={"upload_failure_probability": 0.5, "min_updates": 3})
# And all of a round's: 3 in every round.
DEAF = CONFIG.model_copy(update={"upload_failure_probability": 1 - 1e-9})


@pytest.mark.parametrize("algorithm", [fedavg.Config(), fedvsr.Config(decay="none")])
def test_a_round_closes_without_the_uploads_that_are_lost(algorithm: NamedSection) -> None:
    states = ClientStates()
    events = rounds([0, 1, 2], start(), algorithm, config=LOSSY, states=states)
    finished = [event for event in events if isinstance(event, RoundFinished)]
    assert [event.num_upload_failures for event in finished] == [1, 3, 0, 2]
    before = start().params
    for event in finished:
        reports = event.reports
        arrived = [o.report for o in event.outcomes if not o.upload_failed]
        assert event.num_failed == 0
        assert len(reports) == 3, "clients whose upload is lost have trained"
        heard = {report.client_id: report.loss for report in arrived}
        assert event.state.losses == heard, "a loss that is lost is not known to the server"
        # All remember the round, because a client does not know that its upload was lost.
        assert all(states.round_of(r.client_id) is not None for r in reports)
        if not arrived:
            assert event.weights is None
            assert event.state.params.tobytes() == before.tobytes()
            continue
        shares = [1 / r.loss if algorithm.name == "fedvsr" else 1.0 for r in arrived]
        shares = [share / sum(shares) for share in shares]
        assert event.weights is not None
        of = dict(zip([r.client_id for r in reports], event.weights, strict=True))
        assert [of[r.client_id] for r in arrived] == pytest.approx(shares)
        assert math.fsum(event.weights) == pytest.approx(1), "lost uploads have weight 0"
        seeds = [derive_seed(7, "client", r.client_id, r.round_idx) for r in arrived]
        noise = [1e3 * np.random.default_rng(seed).standard_normal(50) for seed in seeds]
        expected = before + np.average(noise, axis=0, weights=shares)
        np.testing.assert_allclose(event.state.params, expected, rtol=1e-4, atol=1e-2)
        before = event.state.params
    assert states.newest_round == 4


def test_the_same_uploads_are_lost_in_any_order_and_after_a_stop() -> None:
    one, other = (
        [
            event
            for event in rounds(order, start(), fedvsr.Config(), config=LOSSY)
            if isinstance(event, RoundFinished)
        ]
        for order in ([0, 1, 2], [2, 0, 1])
    )
    assert [e.outcomes for e in one] == [e.outcomes for e in other]
    resumed = rounds([0, 1, 2], one[1].state, fedvsr.Config(), config=LOSSY)[-1]
    for last in (other[-1], resumed):
        assert isinstance(last, RoundFinished)
        assert last.state.params.tobytes() == one[-1].state.params.tobytes()


def test_a_run_in_which_every_upload_is_lost_ends_where_it_began() -> None:
    server = {"params": np.ones(50, np.float32), "control": np.full(50, 2, np.float32)}
    last = rounds([0, 1, 2], RunState(0, server, {}), scaffold.Config(), config=DEAF)[-1]
    assert isinstance(last, RoundFinished)
    assert last.state.round_idx == 4
    assert last.state.server == server


def test_lost_uploads_do_not_hide_clients_that_diverged() -> None:
    with pytest.raises(UserError, match=r"no update of round 1 is finite, of 3 clients"):
        rounds([0, 1, 2], start(), fedavg.Config(), (0, 1, 2), config=DEAF)
    # A client that diverges counts against the quorum, those whose uploads are lost do not.
    with pytest.raises(UserError, match=r"round 1 has 2 finite updates, fewer than"):
        rounds([0, 1, 2], start(), fedavg.Config(), (1,), config=LOSSY)


def test_client_seeds_have_a_scope_each() -> None:
    seeds = {derive_seed(0, "client", c, r) for c in range(50) for r in range(50)}
    assert len(seeds) == 2500


class Losing(Shuffling):
    """Loses the update of a round's first client before the first sum, for good or for once."""

    def __init__(self, final: bool) -> None:
        super().__init__([0, 1, 2])
        self.final, self.trained = final, list[list[int]]()

    def run_round(
        self, tasks: Sequence[ClientTask], *arguments: Any
    ) -> Iterator[TrainedClient | Fault]:
        self.trained.append([task.client_id for task in tasks])
        self.order = [*range(len(tasks))]
        yield from super().run_round(tasks, *arguments)

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        report = work.clients[0].outcome.report
        if report.round_idx == 2 and len(self.trained) == 2:
            # Once more, so that the next sum goes through.
            self.trained.append([])
            error = UserError("its node is gone")
            yield Fault(2, report.client_id, "node_lost", "", final=self.final, error=error)
            return
        yield aggregate_here(work)


@pytest.mark.parametrize(("final", "min_updates"), [(False, None), (True, 2), (True, None)])
def test_a_lost_update_is_made_again_or_left_out(final: bool, min_updates: int | None) -> None:
    config = CONFIG.model_copy(update={"min_updates": min_updates})
    setup = RoundSetup(algorithms.build(scaffold.Config()), config, UNCHANGED, [4] * 10, (), seed=7)
    server = {"params": np.zeros(50, np.float32), "control": np.zeros(50, np.float32)}

    def run(executor: Shuffling) -> list[Any]:
        return list(run_rounds(RunState(0, server, {}), setup, executor, ClientStates()))

    executor = Losing(final)
    if final and min_updates is None:
        with pytest.raises(UserError, match="its node is gone"):
            run(executor)
        return
    finished = [event for event in run(executor) if isinstance(event, RoundFinished)]
    undisturbed = [e for e in run(Shuffling([0, 1, 2])) if isinstance(e, RoundFinished)]
    first = undisturbed[1].reports[0].client_id
    if final:
        assert [report.client_id for report in finished[1].reports] == [
            report.client_id for report in undisturbed[1].reports[1:]
        ]
        assert finished[1].num_failed == 1
    else:
        assert executor.trained[3] == [first], "the lost client alone trains again"
        for one, other in zip(finished, undisturbed, strict=True):
            assert one.state.params.tobytes() == other.state.params.tobytes()
            assert one.outcomes == other.outcomes
