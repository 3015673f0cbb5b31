"""A node's raylet is stopped while something is to come from that node."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fedvsr.algorithms.base import Aggregated
from fedvsr.cluster import nodes as nodes_module
from fedvsr.cluster.nodes import ask_nodes
from fedvsr.config import ExperimentConfig
from fedvsr.federation import aggregators, remote
from fedvsr.federation.aggregation import RoundSum
from fedvsr.federation.executors import Clients, Fault
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.runs.run import create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.running import faults_in, on_ray, with_cluster
from tests.integration.test_clusters import cluster_of

pytestmark = [pytest.mark.ray, pytest.mark.full]

# Seconds; a stopped raylet is given up by the cluster's head only after 25 s or more.
FETCH_S, STOPPED_S = 3.0, 8.0


def raylet_of(node: Any) -> int:
    return int(node.all_processes["raylet"][0].process.pid)


class Stalling:
    """Makes executors that stop a raylet before the first sum; a `make_executor`.

    The first client's update is still on that raylet's node then.
    """

    def __init__(self, raylets: dict[str, int], marker: Path) -> None:
        self.raylets, self.marker = raylets, marker

    def __call__(self, clients: Clients, **arguments: Any) -> RayExecutor:
        remote.FETCH_S = aggregators.FETCH_S = FETCH_S
        executor = StallingExecutor(clients, **arguments)
        executor.stalling = self
        return executor


class StallingExecutor(RayExecutor):
    stalling: Stalling

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        if not self.stalling.marker.exists():
            raylet = self.stalling.raylets[str(work.clients[0].outcome.node)]
            os.kill(raylet, signal.SIGSTOP)
            self.stalling.marker.write_text(str(raylet))
        yield from super().aggregate(work)


def continue_later(marker: Path) -> None:
    """Continue the raylet that the marker names, some seconds after it was stopped."""
    while not marker.exists() or not marker.read_text():
        time.sleep(0.05)
    time.sleep(STOPPED_S)
    os.kill(int(marker.read_text()), signal.SIGCONT)


def test_a_result_that_does_not_come_from_its_node_is_computed_again(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    marker = tmp_path / "stopped"
    run = create_run(with_cluster(small, slots=1), tmp_path / "out")
    # Updates of this small network would otherwise travel inside the answer.
    apart = {"RAY_max_direct_call_object_size": "4096"}
    with cluster_of({"num_cpus": 1}, {"num_cpus": 1}, **apart) as (_, *nodes):
        raylets = {node.node_id: raylet_of(node) for node in nodes}
        thread = threading.Thread(target=continue_later, args=(marker,), daemon=True)
        thread.start()
        events = list(on_ray(run, Stalling(raylets, marker)))
        thread.join(60)
    assert marker.exists()
    (fault,) = faults_in(events)
    assert (fault.kind, fault.final) == ("timeout", False)
    assert fault.lost_s >= FETCH_S
    assert_equal_runs(undisturbed, run.folder)


def test_a_node_that_does_not_answer_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes_module, "_ANSWER_S", 3)
    with cluster_of({"num_cpus": 1}, {"num_cpus": 1}) as (_, _, other):
        os.kill(raylet_of(other), signal.SIGSTOP)
        began = time.monotonic()
        try:
            reports = ask_nodes([str(tmp_path)], others_only=True)
            took_s = time.monotonic() - began
        finally:
            os.kill(raylet_of(other), signal.SIGCONT)
    (report,) = reports
    assert report.silent == "did not answer within 3 s"
    assert 3 <= took_s < 30
