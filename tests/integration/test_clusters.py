"""Clusters of several nodes, and of GPUs that are only counted."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import ray
from ray.cluster_utils import Cluster

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, TrainedClient
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate
from fedvsr.records import load_results
from fedvsr.runs.events import RunStarted
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.faulty import Failure, FaultyExecutor
from tests.integration.running import (
    clients_of,
    drive,
    faults_in,
    placed,
    run_serially,
    split_of,
    start,
)

pytestmark = pytest.mark.ray


@contextmanager
def cluster_of(*nodes: dict[str, Any], **environment: str) -> Iterator[list[Any]]:
    """A cluster of nodes on this machine, with this process at its first."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"RAY_worker_niceness": "0", **environment}.items():
            patch.setenv(name, value)
        cluster = Cluster()
        try:
            common = {"object_store_memory": 100 << 20, "include_dashboard": False}
            started = [cluster.add_node(**common, **node) for node in nodes]
            cluster.wait_for_nodes()
            ray.init(address=cluster.address, log_to_driver=False)
            yield [cluster, *started]
        finally:
            ray.shutdown()
            cluster.shutdown()


def test_a_node_that_is_removed_costs_no_bit(small_yaml: Path, tmp_path: Path) -> None:
    config = load_config(str(small_yaml), ["cluster.slots=2"])
    undisturbed = run_serially(config, tmp_path / "serial")
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 2]["client_id"].iloc[1])
    # It lingers where it trains first, and that node goes.
    marker = tmp_path / "marker"
    kind: Any = FaultyExecutor(Failure("hang", victim, 2, marker))
    run = create_run(config, tmp_path / "out")
    # A dead node refuses at once; one that is merely slow on a busy machine has its time.
    fast = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "20000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "0",
    }
    # This process is at the head, which must stay: nothing trains there.
    head, one = {"num_cpus": 0}, {"num_cpus": 1}
    with (
        cluster_of(head, one, one, one, **fast) as (cluster, *nodes),
        placed(config.cluster) as where,
    ):
        assert len({place.node_id for place in where.places()}) == 2
        remover = threading.Thread(target=remove_node, args=(marker, cluster, nodes))
        remover.start()
        split, never = split_of(config), threading.Event()
        events = list(start(run, split, config.cluster, where, kind, never))
        remover.join()
    assert_equal_runs(undisturbed, run.folder)
    faults = load_results(run.folder).faults
    assert faults["client_id"].tolist() == [victim]
    assert set(faults["kind"]) <= {"node_lost", "died"}
    assert [fault.final for fault in faults_in(events)] == [False]


def remove_node(marker: Path, cluster: Cluster, nodes: list[Any]) -> None:
    """The node of the process that wrote the marker, as if it lost its power."""
    while not marker.exists() or not marker.read_text():
        time.sleep(0.05)
    ancestors = {process.pid for process in psutil.Process(int(marker.read_text())).parents()}
    for node in nodes:
        if node.all_processes["raylet"][0].process.pid in ancestors:
            cluster.remove_node(node, allow_graceful=False)


def test_a_client_out_of_memory_costs_no_bit(small_yaml: Path, tmp_path: Path) -> None:
    config = load_config(str(small_yaml), ["cluster.slots=1", "cluster.max_retries=4"])
    undisturbed = run_serially(config, tmp_path / "serial")
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 2]["client_id"].iloc[0])
    kind: Any = FaultyExecutor(Failure("eat_memory", victim, 2, tmp_path / "marker"))
    run = create_run(config, tmp_path / "out")
    split, never = split_of(config), threading.Event()
    # Room for the processes of the test, not for what the client takes.
    memory = psutil.virtual_memory()
    used = (memory.total - memory.available + (5 << 30)) / memory.total
    monitor = {
        "RAY_memory_usage_threshold": f"{used:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    with cluster_of({"num_cpus": 2}, **monitor), placed(config.cluster) as where:
        events = list(start(run, split, config.cluster, where, kind, never))
    assert_equal_runs(undisturbed, run.folder)
    assert "out_of_memory" in {fault.kind for fault in faults_in(events)}


class SleepingTrainer:
    """Takes a second for every step that a client has."""

    def warm_up(self) -> None:
        pass

    def train(
        self, task: ClientTask, shared: Any, state: Any, clips: Any, *_: Any
    ) -> tuple[ClientReport, ClientUpdate]:
        started_at = time.time()
        time.sleep(len(clips))
        took = time.time() - started_at
        report = ClientReport(task.client_id, task.round_idx, 1, len(clips), 0.0, 0.0, took)
        return replace(report, started_at=started_at), ClientUpdate(
            {"params": shared["params"]}, {}
        )


class SleepingClients(Clients):
    def make_trainer(self) -> Any:
        return SleepingTrainer()


GPUS = {"num_gpus": 4, "num_cpus": 6, "resources": {"accelerator_type:RTX-A6000": 1}}


def test_no_gpu_idles_while_a_client_waits(small: ExperimentConfig) -> None:
    """Measured makespan against greedy list scheduling of the measured lengths; GPUs are fake."""
    # Steps of clients in sampled order: short and long ones mixed.
    lengths = [1, 4, 2, 3, 3, 1, 3, 2, 2, 1]
    some = clients_of(small, epochs=1, batch_size=4)
    clip = some.clips[0][0]
    assert clip.num_frames == 4
    clients = SleepingClients(
        some.model,
        some.algorithm,
        some.local.model_copy(update={"steps": None}),
        [(clip,) * length for length in lengths],
    )
    config = ClusterConfig(accelerator="RTX-A6000", max_live_clients=20)
    label = {"ray.io/accelerator-type": "RTX-A6000"}
    with (
        cluster_of({"num_cpus": 2}, {**GPUS, "labels": label}),
        placed(config, cohort=10) as where,
    ):
        assert {place.device for place in where.places()} == {"RTX-A6000"}
        assert len(where.places()) == 4
        executor = RayExecutor(clients, config, where)
        tasks = [ClientTask(i, 1, 1, seed=0) for i in range(len(lengths))]
        params = {"params": np.zeros(10, np.float32)}
        for _ in range(2):
            # In the first round processes start; the second finds them alive.
            outcomes = [
                client.outcome
                for client in executor.run_round(tasks, params, ClientStates(), range(10))
                if isinstance(client, TrainedClient)
            ]
        executor.close()
    assert len(outcomes) == len(lengths)
    begun = min(o.report.started_at for o in outcomes)
    makespan = max(o.report.started_at + o.report.train_s for o in outcomes) - begun
    took = {o.report.client_id: o.report.train_s for o in outcomes}
    free_at = [0.0] * 4
    for client_id in range(len(lengths)):
        free_at.sort()
        free_at[0] += took[client_id]
    assert makespan <= 1.05 * max(free_at)
    assert {o.slot for o in outcomes} == {0, 1, 2, 3}
    for slot in range(4):
        # A GPU never trains two at once.
        own = sorted((o.report for o in outcomes if o.slot == slot), key=lambda r: r.started_at)
        for before, after in pairwise(own):
            assert after.started_at >= before.started_at + before.train_s


def test_a_whole_run_in_slots_of_gpus_costs_no_bit(small_yaml: Path, tmp_path: Path) -> None:
    """The evaluator takes a slot when it scores; the GPUs are only counted."""
    config = load_config(str(small_yaml), ["cluster.gpu_share=0.2"])
    undisturbed = run_serially(config, tmp_path / "serial")
    run = create_run(config, tmp_path / "out")
    with cluster_of({"num_cpus": 3, "num_gpus": 2}):
        events = drive(run, config)
    assert not faults_in(events)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    assert started.device == "GPU"
    assert_equal_runs(undisturbed, run.folder, but=["device"])
    assert set(load_results(run.folder).clients["slot"]) == {0, 1}


def test_an_actor_holds_its_share_of_its_slots_gpu(small: ExperimentConfig) -> None:
    config = ClusterConfig(clients_per_gpu=2, gpu_share=0.5)
    with (
        cluster_of({"num_cpus": 3, "num_gpus": 2}),
        placed(config.model_copy(update={"slots": 4}), cohort=4) as where,
    ):
        executor = RayExecutor(SleepingClients(**vars(clients_of(small))), config, where)
        tasks = [ClientTask(i, 1, 1, seed=0) for i in range(4)]
        outcomes = list(
            executor.run_round(tasks, {"params": np.zeros(10, np.float32)}, ClientStates())
        )
        asked = {i: actor.handle.__ray_call__.remote(gpus) for i, actor in executor.pool.items()}
        held = {i: ray.get(ref) for i, ref in asked.items()}
        executor.close()
    assert sorted(held.values()) == [(0.5, "0"), (0.5, "0"), (0.5, "1"), (0.5, "1")]
    assert {c.outcome.slot for c in outcomes if isinstance(c, TrainedClient)} == {0, 1, 2, 3}


def gpus(_: Any) -> tuple[float, str]:
    resources = ray.get_runtime_context().get_assigned_resources()
    return resources["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]
