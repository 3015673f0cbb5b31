from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np
import pytest

from fedvsr import algorithms
from fedvsr.algorithms import fedavg, fedvsr
from fedvsr.errors import UserError
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
            yield TrainedClient(ClientOutcome(report), ClientUpdate({"params": update}, {}))

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
) -> list[ClientFinished | Fault | RoundFinished]:
    return list(
        run_rounds(
            state,
            RoundSetup(algorithms.build(algorithm), CONFIG, update, [4] * 10, (), seed=7),
            Shuffling(order, broken),
            ClientStates(),
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


def test_client_seeds_have_a_scope_each() -> None:
    seeds = {derive_seed(0, "client", c, r) for c in range(50) for r in range(50)}
    assert len(seeds) == 2500
