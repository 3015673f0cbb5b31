"""What a round holds in the driver's memory, whatever the number of its clients."""

from __future__ import annotations

import gc
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest

from fedvsr.algorithms import fedavg, scaffold
from fedvsr.algorithms.base import Aggregated, start
from fedvsr.federation.aggregation import RoundSum, aggregate_here
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome, Fault, TrainedClient
from fedvsr.federation.rounds import RoundFinished, RoundSetup, RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Round, Vectors
from fedvsr.training.updates import UNCHANGED

NUM_PARAMS = 8_000_000
MODEL_BYTES = 4 * NUM_PARAMS


class Viewing:
    """An executor whose updates are read-only views of memory elsewhere, as with Ray."""

    name = "viewing"

    def __init__(self) -> None:
        self.updates = list[weakref.ref[ClientUpdate]]()

    def run_round(
        self, tasks: Sequence[ClientTask], shared: Vectors, states: ClientStates, *_: Any
    ) -> Iterator[TrainedClient]:
        for task in tasks:
            report = ClientReport(task.client_id, task.round_idx, 1, 1, 1.0, 1.0, 0.0)
            # One number, seen as a whole vector.
            params = np.broadcast_to(np.float32(task.client_id), NUM_PARAMS)
            update = ClientUpdate({"params": params}, {})
            self.updates.append(weakref.ref(update))
            yield TrainedClient(ClientOutcome(report), update)
            del update

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        yield aggregate_here(work)

    def start_scorer(self, make: Callable[[], Any]) -> Any:
        raise AssertionError("nothing is scored")

    def close(self) -> None:
        pass


def rounds(executor: Viewing, cohort: int) -> Iterator[Any]:
    config = FederationConfig(num_rounds=2, clients_per_round=cohort)
    algorithm = fedavg.Algorithm(fedavg.Config())
    return run_rounds(
        RunState(0, {"params": np.zeros(NUM_PARAMS, np.float32)}, {}),
        RoundSetup(algorithm, config, UNCHANGED, [1] * cohort, (), seed=0),
        executor,
        ClientStates(),
    )


@pytest.mark.parametrize("cohort", [4, 64])
def test_the_driver_holds_two_models_of_its_own(cohort: int) -> None:
    tracemalloc.start()
    try:
        for _ in rounds(Viewing(), cohort):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The global parameters and their successor. Updates lie elsewhere.
    assert peak < 2.25 * MODEL_BYTES, f"{peak / MODEL_BYTES:.2f} models"


def test_a_rounds_updates_are_freed_when_it_is_aggregated() -> None:
    executor = Viewing()
    for event in rounds(executor, 4):
        if isinstance(event, RoundFinished):
            gc.collect()
            assert executor.updates
            assert not [update for update in executor.updates if update() is not None]
            executor.updates.clear()


class Fetched:
    """An update that is made when it is read, as one that comes from another node."""

    def __init__(self, live: list[weakref.ref[Any]], most: list[int]) -> None:
        self._live, self._most = live, most
        self.state = Vectors()

    @property
    def upload(self) -> Vectors:
        self._most.append(1 + sum(ref() is not None for ref in self._live))
        upload = {name: np.ones(1000, np.float32) for name in ("params", "control_change")}
        self._live.append(weakref.ref(upload["params"]))
        return upload


@pytest.mark.parametrize("kind", [fedavg, scaffold])
def test_the_driver_holds_one_update_while_it_sums(kind: Any) -> None:
    live, most = list[weakref.ref[Any]](), list[int]()
    report = ClientReport(0, 1, 1, 1, 1.0, 1.0, 0.0)
    clients = [TrainedClient(ClientOutcome(report), Fetched(live, most)) for _ in range(5)]
    algorithm = kind.Algorithm(kind.Config())
    server = start(algorithm, np.zeros(1000, np.float32))
    work = RoundSum(algorithm, clients, [0.2] * 5, server, Round(1, 1, 5, 5, ()))
    result = aggregate_here(work)
    np.testing.assert_allclose(result.vectors["params"], 1, rtol=1e-6)
    assert most == [1] * 5
