"""Clusters of several nodes, and of GPUs that Ray only counts."""

from __future__ import annotations

import json
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

from fedvsr.config import ExperimentConfig
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Delay, TrainedClient
from fedvsr.federation.gpu_probe import Probe, resolved
from fedvsr.federation.gpu_sharing import Card
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate
from fedvsr.records import load_results
from fedvsr.runs.events import RunStarted
from fedvsr.runs.run import create_run
from fedvsr.training.footprint import Footprint
from tests.drained import drained
from tests.integration.equality import assert_equal_runs
from tests.integration.faulty import Failure, FaultyExecutor
from tests.integration.running import (
    clients_of,
    executor_of,
    faults_in,
    on_ray,
    run_serially,
    with_cluster,
)

pytestmark = [pytest.mark.ray, pytest.mark.full]


@contextmanager
def cluster_of(*nodes: dict[str, Any], **environment: str) -> Iterator[list[Any]]:
    """A cluster of nodes on this machine, with this process on the first.

    It collects no metrics: in Ray 2.60 a group of bundles that has lost a node, without room for it
    elsewhere, is tried again without a pause (ray-project/ray, pull request 65007), and each try is
    a metric, which together take both processors of a small machine.
    """
    fixed = {"RAY_worker_niceness": "0", "RAY_enable_metrics_collection": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**fixed, **environment}.items():
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


def test_a_node_that_is_removed_costs_no_bit(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 2]["client_id"].iloc[1])
    # It hangs where it trains first, and that node is removed.
    marker = tmp_path / "marker"
    run = create_run(with_cluster(small, slots=2), tmp_path / "out")
    # A dead node is noticed at once; one that is only slow on a busy machine is waited for.
    fast = {
        "RAY_health_check_period_ms": "1000",
        "RAY_health_check_timeout_ms": "20000",
        "RAY_health_check_failure_threshold": "3",
        "RAY_health_check_initial_delay_ms": "0",
    }
    # The first node stays. Its processor is for the driver, so nothing trains there.
    one = {"num_cpus": 1}
    with cluster_of(one, one, one, one, **fast) as (cluster, *nodes):
        head_id = ray.get_runtime_context().get_node_id()
        remover = threading.Thread(target=remove_node, args=(marker, cluster, nodes))
        remover.start()
        events = list(on_ray(run, FaultyExecutor(Failure("hang", victim, 2, marker))))
        remover.join()
    assert_equal_runs(undisturbed, run.folder)
    results = load_results(run.folder)
    trained_on = results.clients.groupby("round_idx")["node"].agg(set)
    assert len(trained_on[1]) == 2, "the slots are not on two nodes"
    assert head_id not in set().union(*trained_on)
    faults = results.faults
    assert faults["client_id"].dropna().tolist() == [victim]
    # The node's aggregator may be lost too.
    others = faults.loc[faults["client_id"].isna(), "message"]
    assert others.str.startswith("the aggregator of slice ").all()
    assert len(others) <= 1
    assert set(faults["kind"]) <= {"node_lost", "died"}
    assert not any(fault.final for fault in faults_in(events))


def remove_node(marker: Path, cluster: Cluster, nodes: list[Any]) -> None:
    """Remove the node whose process wrote the marker, as if its power failed."""
    while not marker.exists() or not marker.read_text():
        time.sleep(0.05)
    ancestors = {process.pid for process in psutil.Process(int(marker.read_text())).parents()}
    for node in nodes:
        if node.all_processes["raylet"][0].process.pid in ancestors:
            cluster.remove_node(node, allow_graceful=False)


def test_a_client_out_of_memory_costs_no_bit(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 2]["client_id"].iloc[0])
    failure = Failure("eat_memory", victim, 2, tmp_path / "marker")
    run = create_run(with_cluster(small, slots=1, max_retries=4), tmp_path / "out")
    # Room for the processes of this test and of those beside it, but not for what the client takes.
    memory = psutil.virtual_memory()
    used = 1 - memory.available / 2 / memory.total
    monitor = {
        "RAY_memory_usage_threshold": f"{used:.3f}",
        "RAY_memory_monitor_refresh_ms": "100",
    }
    # The driver and the evaluator are on the first node, which has the usual limit.
    with cluster_of({"num_cpus": 1}, {"num_cpus": 1, "env_vars": monitor}):
        events = list(on_ray(run, FaultyExecutor(failure)))
    assert_equal_runs(undisturbed, run.folder)
    assert "out_of_memory" in {fault.kind for fault in faults_in(events)}


class SleepingTrainer:
    """Sleeps a second for each clip of the client, instead of training."""

    def release(self) -> None:
        pass

    def train(
        self, task: ClientTask, shared: Any, state: Any, clips: Any, *_: Any
    ) -> tuple[ClientReport, ClientUpdate]:
        started_at = time.time()
        time.sleep(len(clips))
        train_s = time.time() - started_at
        report = ClientReport(task.client_id, task.round_idx, 1, len(clips), 0.0, 0.0, train_s)
        return replace(report, started_at=started_at), ClientUpdate(
            {"params": shared["params"]}, {}
        )


class SleepingClients(Clients):
    def make_trainer(self) -> Any:
        return SleepingTrainer()


GPUS = {"num_gpus": 4, "num_cpus": 6, "resources": {"accelerator_type:RTX-A6000": 1}}


def test_no_gpu_idles_while_a_client_waits(small: ExperimentConfig) -> None:
    """The round takes as long as greedy list scheduling of the measured seconds; GPUs are fake."""
    # Seconds of clients in sampled order: short and long ones mixed.
    lengths_s = [1, 4, 2, 3, 3, 1, 3, 2, 2, 1]
    real = clients_of(small, epochs=1, batch_size=4)
    clip = real.clips[0][0]
    assert clip.num_frames == 4
    clients = SleepingClients(
        real.model,
        real.algorithm,
        real.local.model_copy(update={"steps": None}),
        [(clip,) * length_s for length_s in lengths_s],
    )
    config = ClusterConfig(accelerator="RTX-A6000", max_live_clients=20)
    label = {"ray.io/accelerator-type": "RTX-A6000"}
    with (
        cluster_of({"num_cpus": 2}, {**GPUS, "labels": label}),
        executor_of(clients, config, cohort=10) as executor,
    ):
        places = executor._placement.places()
        assert {place.device for place in places} == {"RTX-A6000"}
        assert len(places) == 4
        tasks = [ClientTask(i, 1, 1, seed=0) for i in range(len(lengths_s))]
        params = {"params": np.zeros(10, np.float32)}
        for _ in range(2):
            # In the first round processes start; the second round has them.
            outcomes = [
                client.outcome
                for client in executor.run_round(tasks, params, ClientStates(), range(10))
                if isinstance(client, TrainedClient)
            ]
    assert len(outcomes) == len(lengths_s)
    start_s = min(o.report.started_at for o in outcomes)
    makespan_s = max(o.report.started_at + o.report.train_s for o in outcomes) - start_s
    train_s = {o.report.client_id: o.report.train_s for o in outcomes}
    free_at_s = [0.0] * 4
    for client_id in range(len(lengths_s)):
        free_at_s.sort()
        free_at_s[0] += train_s[client_id]
    assert makespan_s <= 1.05 * max(free_at_s)
    assert {o.slot for o in outcomes} == {0, 1, 2, 3}
    for slot in range(4):
        # A GPU never trains two clients at once.
        own = sorted((o.report for o in outcomes if o.slot == slot), key=lambda r: r.started_at)
        for before, after in pairwise(own):
            assert after.started_at >= before.started_at + before.train_s


def card() -> Card:
    """A GPU that Ray only counts."""
    assert os.environ["CUDA_VISIBLE_DEVICES"] in ("0", "1"), "the task holds a GPU"
    return Card("card", 10**10)


def footprint(clients: Clients) -> Footprint:
    """Three clients keep the GPU busy, and two fit."""
    return Footprint("card", 10**10, 4 * 10**9, 10**8, 0.3)


def test_a_run_in_slots_of_gpus_gives_the_same_bits(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    """The evaluator takes a slot while it scores. Ray only counts the GPUs.

    Two clients share each GPU, and one of them runs out of its memory.
    """
    federation = small.federation.model_copy(update={"num_rounds": 8, "clients_per_round": 3})
    # Scored before the first round and after the last: between, clients have all slots.
    evaluation = small.evaluation.model_copy(update={"every_rounds": 8})
    data = small.data.model_copy(update={"cache_dir": str(tmp_path / "cache")})
    changed = {"federation": federation, "evaluation": evaluation, "data": data}
    config = small.model_copy(update=changed)
    undisturbed = run_serially(config, tmp_path / "serial")
    clients = load_results(undisturbed).clients
    victim = int(clients[clients["round_idx"] == 3]["client_id"].iloc[0])
    run = create_run(with_cluster(config, clients_per_gpu="auto", gpu_share=0.2), tmp_path / "out")
    failure = Failure("fill_gpu", victim, 3, tmp_path / "marker")
    with cluster_of({"num_cpus": 4, "num_gpus": 2}):
        events = list(on_ray(run, FaultyExecutor(failure), Probe(card, footprint)))
    (fault,) = faults_in(events)
    assert (fault.kind, fault.client_id, fault.final) == ("out_of_memory", victim, False)
    (started,) = (event for event in events if isinstance(event, RunStarted))
    assert started.device == "GPU"
    assert started.notes[-1].startswith("cluster.clients_per_gpu = auto is 2 here: ")
    assert_equal_runs(undisturbed, run.folder, ignore=["device"])
    results = load_results(run.folder)
    (row,) = results.runs.to_dict("records")
    assert json.loads(row["config"])["cluster"]["clients_per_gpu"] == 2
    assert set(results.clients["slot"] // 2) == {0, 1}
    in_round = results.clients[results.clients["round_idx"] == 3].set_index("client_id")
    own = in_round.loc[victim]
    beside = in_round[in_round["slot"] // 2 == own["slot"] // 2].drop(victim)
    ended_s = beside["started_s"] + beside["train_s"]
    is_apart = (ended_s <= own["started_s"]) | (
        beside["started_s"] >= own["started_s"] + own["train_s"]
    )
    assert is_apart.all(), "it was not alone on its GPU"


def kaput(clients: Clients) -> Footprint:
    raise RuntimeError("the GPU has fallen off the bus")


def test_an_actor_holds_its_share_of_its_slots_gpu(small: ExperimentConfig, tmp_path: Path) -> None:
    """And a GPU that cannot be measured takes one client."""
    config = ClusterConfig(clients_per_gpu=2, gpu_share=0.5, slots=4)
    auto = config.model_copy(update={"clients_per_gpu": "auto"})
    clients = SleepingClients(**vars(clients_of(small)))
    with cluster_of({"num_cpus": 3, "num_gpus": 2}):
        (waiting,), (alone, (note,)) = drained(
            resolved(auto, clients, 4, tmp_path, Probe(card, kaput))
        )
        with executor_of(clients, config, cohort=4) as executor:
            tasks = [ClientTask(i, 1, 1, seed=0) for i in range(4)]
            outcomes = list(
                executor.run_round(tasks, {"params": np.zeros(10, np.float32)}, ClientStates())
            )
            asked = {i: a.handle.__ray_call__.remote(gpus) for i, a in executor.pool.items()}
            held = {i: ray.get(ref) for i, ref in asked.items()}
    assert waiting == Delay("measuring how many clients a GPU can train at once", 630.0)
    assert alone.clients_per_gpu == 1
    assert note.endswith(" was not measured: RuntimeError: the GPU has fallen off the bus")
    assert sorted(held.values()) == [(0.5, "0"), (0.5, "0"), (0.5, "1"), (0.5, "1")]
    assert {c.outcome.slot for c in outcomes if isinstance(c, TrainedClient)} == {0, 1, 2, 3}


def gpus(_: Any) -> tuple[float, str]:
    resources = ray.get_runtime_context().get_assigned_resources()
    return resources["GPU"], os.environ["CUDA_VISIBLE_DEVICES"]
