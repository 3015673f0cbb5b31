"""What a round holds in the driver's memory, whatever the number of its clients."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import pytest

from fedvsr.algorithms import fedavg
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import ClientOutcome
from fedvsr.federation.rounds import RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.training.updates import UNCHANGED

NUM_PARAMS = 8_000_000
MODEL_BYTES = 4 * NUM_PARAMS


class Fetching:
    """An executor whose updates lie elsewhere: each takes memory when it is fetched."""

    name = "fetching"

    def run_round(
        self, tasks: Sequence[ClientTask], shared: Vectors, states: ClientStates, *_: Any
    ) -> Iterator[ClientOutcome]:
        for task in tasks:
            report = ClientReport(task.client_id, task.round_idx, 1, 1, 1.0, 1.0, 0.0)
            yield ClientOutcome(report, partial(_fetch, task.client_id))

    def start_scorer(self, make: Callable[[], Any]) -> Any:
        raise AssertionError("nothing is scored")

    def close(self) -> None:
        pass


def _fetch(client_id: int) -> ClientUpdate:
    return ClientUpdate({"params": np.full(NUM_PARAMS, client_id, np.float32)}, {})


@pytest.mark.parametrize("cohort", [4, 16, 64])
def test_the_driver_holds_two_models_and_the_updates_it_reads(cohort: int) -> None:
    tracemalloc.start()
    try:
        for _ in run_rounds(
            RunState(0, {"params": np.zeros(NUM_PARAMS, np.float32)}, {}),
            algorithm=fedavg.Algorithm(fedavg.Config()),
            executor=Fetching(),
            config=FederationConfig(num_rounds=2, clients_per_round=cohort),
            sizes=[1] * cohort,
            tensors=(),
            update=UNCHANGED,
            seed=0,
            states=ClientStates(),
        ):
            pass
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The global parameters, their successor, the update that is read, and the next as it is
    # fetched. With Ray an update is a view of shared memory.
    assert peak < 4.25 * MODEL_BYTES, f"{peak / MODEL_BYTES:.2f} models"
