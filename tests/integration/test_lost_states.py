"""What clients remember is lost between two rounds, and the run goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from fedvsr.config import load_config
from fedvsr.federation.executors import Clients, Fault, SerialExecutor, TrainedClient
from fedvsr.messages import ClientUpdate, LostError, Vectors
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.running import faults_in, run_serially, split_of


@dataclass(frozen=True)
class Far:
    """A state on a node that is gone from some round on, but for the second time."""

    client_id: int
    vectors: Vectors
    executor: Forgetting

    @property
    def nbytes(self) -> int:
        return sum(vector.nbytes for vector in self.vectors.values())

    def fetch(self) -> Vectors:
        if self.executor.is_lost and self.client_id == 2:
            raise LostError(2, "its node is gone")
        return self.vectors


class Forgetting(SerialExecutor):
    lose_in = 0
    is_lost = False
    num_lost = 0

    def run_round(self, tasks: Any, *arguments: Any) -> Iterator[TrainedClient | Fault]:
        self.is_lost = tasks[0].round_idx == self.lose_in and not self.num_lost
        self.num_lost += self.is_lost
        for client in super().run_round(tasks, *arguments):
            assert isinstance(client, TrainedClient)
            assert isinstance(client.update, ClientUpdate)
            state = Far(client.outcome.report.client_id, client.update.state, self)
            yield replace(client, update=ClientUpdate(client.update.upload, state))  # type: ignore[arg-type]


@pytest.mark.parametrize(("every_rounds", "resumed_after"), [(2, 2), (100, 0)])
def test_a_run_goes_on_from_its_checkpoint_in_the_same_bits(
    every_rounds: int, resumed_after: int, small_yaml: Path, tmp_path: Path
) -> None:
    settings = ["algorithm.name=scaffold", f"checkpoint.every_rounds={every_rounds}"]
    # Every client trains in every round, so that its state is used again.
    settings += ["federation.clients_per_round=4", "federation.num_rounds=5"]
    config = load_config(str(small_yaml), settings)
    run = create_run(config, tmp_path / "lossy")

    def make(clients: Clients) -> Forgetting:
        executor = Forgetting(clients)
        executor.lose_in = 4
        return executor

    events = list(execute(run, split_of(config), make))
    (fault,) = faults_in(events)
    assert (fault.kind, fault.client_id, fault.final) == ("node_lost", 2, False)
    assert f"resumed after round {resumed_after}" in fault.message
    assert_equal_runs(run_serially(config, tmp_path / "whole"), run.folder)
