"""What clients remember is lost between two rounds, and the run goes on from its checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Fault, Scorer, SerialExecutor, TrainedClient
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.inference.evaluate import Evaluator
from fedvsr.messages import ClientUpdate, LostError, Vectors
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.running import faults_in, reserved, run_serially, split_of
from tests.integration.test_clusters import cluster_of
from tests.integration.test_slices import FAST


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


class OnNodes(RayExecutor):
    """Before round 4 a node is lost, on which a client has trained in round 3."""

    def __init__(self, clients: Clients, lose: Callable[[str], None], **arguments: Any) -> None:
        super().__init__(clients, **arguments)
        self._lose, self._node, self._has_lost = lose, "", False

    def run_round(self, tasks: Any, *arguments: Any) -> Iterator[TrainedClient | Fault]:
        if tasks[0].round_idx == 4 and not self._has_lost:
            self._has_lost = True
            self._lose(self._node)
            self._look_for_places()
        for event in super().run_round(tasks, *arguments):
            if isinstance(event, TrainedClient) and tasks[0].round_idx == 3:
                self._node = event.outcome.node or ""
            yield event

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        # No process has to start for it.
        return SerialExecutor(self._clients).start_scorer(make)


def config_of(small_yaml: Path, every_rounds: int) -> ExperimentConfig:
    settings = ["algorithm.name=scaffold", f"checkpoint.every_rounds={every_rounds}"]
    # Every client trains in every round, so that its state is used again.
    settings += ["federation.clients_per_round=4", "federation.num_rounds=5"]
    return load_config(str(small_yaml), settings)


@pytest.mark.ray
@pytest.mark.full
def test_a_run_goes_on_from_its_checkpoint_once_a_node_is_lost(
    small_yaml: Path, tmp_path: Path
) -> None:
    config = config_of(small_yaml, every_rounds=2)
    run = create_run(config, tmp_path / "lossy")
    cluster_config = ClusterConfig(slots=2, isolation="slot")
    one = {"num_cpus": 1}
    # Small vectors would be kept by the driver, and not be lost.
    stored = {"RAY_max_direct_call_object_size": "100"}
    # The first node is the driver's, and the last takes the place of the one that is lost: Ray's
    # head would try without a pause to find room for what was on it.
    with (
        cluster_of(one, one, one, one, **FAST, **stored) as (cluster, _, *nodes),
        reserved(cluster_config, cohort=4) as placement,
    ):

        def lose(node_id: str) -> None:
            (node,) = (node for node in nodes if node.node_id == node_id)
            cluster.remove_node(node, allow_graceful=False)

        make = partial(OnNodes, lose=lose, config=cluster_config, placement=placement)
        events = list(execute(run, split_of(config), make))
    resumed = [fault for fault in faults_in(events) if "resumed after round 2" in fault.message]
    assert [(fault.kind, fault.final) for fault in resumed] == [("node_lost", False)]
    assert_equal_runs(run_serially(config, tmp_path / "whole"), run.folder)


@pytest.mark.parametrize(("every_rounds", "resumed_after"), [(2, 2), (100, 0)])
def test_a_run_goes_on_from_its_checkpoint_in_the_same_bits(
    every_rounds: int, resumed_after: int, small_yaml: Path, tmp_path: Path
) -> None:
    config = config_of(small_yaml, every_rounds)
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
