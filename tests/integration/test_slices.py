"""A round whose updates stay on their nodes, and whose nodes combine slices of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedvsr.algorithms import fedavg
from fedvsr.algorithms.base import Aggregated
from fedvsr.config import ExperimentConfig
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Executor, Fault, SerialExecutor
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.federation.rounds import RoundFinished, RoundSetup, RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.training.updates import UNCHANGED
from tests.benchmarks.traffic import made, received, stored
from tests.integration.running import clients_of, executor_of
from tests.integration.test_clusters import cluster_of

pytestmark = [pytest.mark.ray, pytest.mark.full]

NUM_PARAMS, COHORT = 100_003, 3
# A dead node is noticed at once; one that is only slow on a busy machine is waited for.
FAST = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "20000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_health_check_initial_delay_ms": "0",
}


@dataclass
class NoisyTrainer:
    """Adds noise of the task's seed to the parameters, and to what the client remembers."""

    remembers: bool

    def warm_up(self) -> None:
        pass

    def release(self) -> None:
        pass

    def train(
        self, task: ClientTask, shared: Vectors, state: Vectors, *_: Any
    ) -> tuple[ClientReport, ClientUpdate]:
        own = np.random.default_rng(task.seed).standard_normal(NUM_PARAMS, np.float32)
        own = own + state["own"] if state else own
        remembered = {"own": own} if self.remembers else {}
        report = ClientReport(task.client_id, task.round_idx, 1 + task.client_id, 1, 1.0, 1.0, 0.0)
        report = replace(report, state_bytes=sum(v.nbytes for v in remembered.values()))
        return report, ClientUpdate({"params": shared["params"] + own}, remembered)


@dataclass(frozen=True)
class NoisyClients(Clients):
    remembers: bool = False

    def make_trainer(self) -> Any:
        return NoisyTrainer(self.remembers)


class Disturbed(RayExecutor):
    """Something happens when all updates of a round are there, before any is summed."""

    disturb: Callable[[RoundSum], None] = staticmethod(lambda _: None)

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        self.disturb(work)
        yield from super().aggregate(work)


def rounds(executor: Executor, states: ClientStates | None = None) -> Iterator[Any]:
    return run_rounds(
        RunState(0, {"params": np.zeros(NUM_PARAMS, np.float32)}, {}),
        RoundSetup(
            fedavg.Algorithm(fedavg.Config()),
            FederationConfig(num_rounds=2, clients_per_round=COHORT),
            UNCHANGED,
            [1] * COHORT,
            (slice(0, NUM_PARAMS),),
            seed=5,
        ),
        executor,
        states or ClientStates(),
    )


@pytest.fixture
def noisy(small: ExperimentConfig) -> NoisyClients:
    clients = clients_of(small)
    return NoisyClients(**{**vars(clients), "algorithm": fedavg.Config()})


def test_lost_nodes_cost_no_bit_and_nodes_receive_what_arithmetic_says(
    noisy: NoisyClients, tmp_path: Path
) -> None:
    one = {"num_cpus": 1}
    # The first node is the driver's, two of the others are lost, and two take their place: Ray's
    # head would try without a pause to find room for what was on them.
    with cluster_of(one, one, one, one, one, **FAST) as (cluster, head, *nodes):

        def lose_the_first_clients_node(work: RoundSum) -> None:
            if work.round_info.round_idx == 2 and not lost:
                outcomes = [client.outcome for client in work.clients]
                (node,) = (node for node in nodes if node.node_id == outcomes[0].node)
                lost.update(o.report.client_id for o in outcomes if o.node == node.node_id)
                cluster.remove_node(node, allow_graceful=False)

        for shards, remembers in ((1, True), (2, False)):
            clients, lost = replace(noisy, remembers=remembers), set[int]()
            states, events = ClientStates(tmp_path), list[Any]()
            config = ClusterConfig(slots=2, aggregation_shards=shards)
            with executor_of(clients, config, Disturbed, cohort=COHORT) as executor:
                executor.disturb = lose_the_first_clients_node
                before = stored()
                for event in rounds(executor, states):
                    events.append(event)
                    if isinstance(event, RoundFinished) and event.state.round_idx == 1:
                        assert_received(executor, event, head.node_id, before, remembers)
                        elsewhere = [not isinstance(states.find(i), dict) for i in range(COHORT)]
                        assert elsewhere == [remembers] * COHORT
                        # A checkpoint's files have what is lost with a node.
                        states.save()
            expected = list(rounds(SerialExecutor(clients)))
            assert events[-1].state.params.tobytes() == expected[-1].state.params.tobytes()
            assert_trained_again(events, lost, num_aggregators=shards - 1)


def assert_received(
    executor: Any, event: RoundFinished, driver: str, before: Counter[str], remembers: bool
) -> None:
    """The nodes' object stores have grown by what they made and what arithmetic says they got.

    So a node with two clients has one copy of the global vector.
    """
    trained = Counter(str(outcome.node) for outcome in event.outcomes)
    actors = executor._aggregators._actors
    slices = [actors[i].node_id for i in sorted(actors)]
    assert max(trained.values()) > 1, "no node trained two clients"
    assert len(set(slices)) in (0, 2), "the slices are not on two nodes"
    expected = received(NUM_PARAMS, trained, driver, slices)
    expected += made(NUM_PARAMS, trained, driver, slices)
    if remembers:
        expected += Counter({node: 4 * NUM_PARAMS * count for node, count in trained.items()})
    after = stored()
    for node in {driver, *trained, *slices}:
        assert after[node] - before[node] == pytest.approx(expected[node], rel=0.02), node


def assert_trained_again(events: list[Any], lost: set[int], num_aggregators: int) -> None:
    """Exactly the clients of the lost node trained again, and were counted."""
    (last,) = (e for e in events if isinstance(e, RoundFinished) and e.state.round_idx == 2)
    faults = [event for event in events if isinstance(event, Fault)]
    again = {fault.client_id for fault in faults if fault.client_id is not None}
    assert again == lost
    assert {o.report.client_id for o in last.outcomes if o.attempts > 1} == again
    assert {fault.kind for fault in faults} <= {"node_lost", "died"}
    assert not any(fault.final for fault in faults)
    assert len(faults) - len(again) <= num_aggregators
