"""What limits a round on many nodes: `make bench-scale`, or this file with arguments.

Arithmetic from constants, of which three are measured here: the bytes of updates that a core
combines in a second, the driver's work to plan a client, and its work for an object that one node
makes and another one reads. The rest is given: a step's seconds, the network's speed.
"""

from __future__ import annotations

import argparse
import math
import os
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import ray
import torch
from ray.cluster_utils import Cluster as LocalCluster

from fedvsr import models
from fedvsr.algorithms import fedavg
from fedvsr.federation.aggregators import _LEAST_SLICE_BYTES
from fedvsr.messages import Round, Vectors
from tests.benchmarks.traffic import BYTES, made, received
from tests.unit.federation.simulated import Cluster, run_rounds, simulated

DRIVER = "node-0"


@dataclass(frozen=True)
class Costs:
    """What was measured."""

    combine_bytes_s: float
    """Bytes of updates that one core combines in a second."""
    plan_s: float
    """The driver's CPU seconds for a client: planning, queues, pulses; without Ray's."""
    object_s: float
    """The driver's CPU seconds for an object that one node makes and another reads."""


@dataclass(frozen=True)
class Load:
    """A round, and the cluster that it runs on."""

    num_params: int
    cohort: int
    nodes: int
    gpus: int
    clients_per_gpu: int
    steps: int
    step_s: float
    link_gbit: float

    @property
    def slots(self) -> int:
        return self.nodes * self.gpus * self.clients_per_gpu

    @property
    def train_s(self) -> float:
        """Seconds in which all clients train, if none waits for anything else."""
        return math.ceil(self.cohort / self.slots) * self.steps * self.step_s

    @property
    def trained(self) -> dict[str, int]:
        """Clients by node."""
        each, more = divmod(self.cohort, self.nodes)
        return {f"node-{i}": each + (i < more) for i in range(self.nodes)}

    def link_s(self, nbytes: float) -> float:
        return nbytes * 8 / (self.link_gbit * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="vrt")
    parser.add_argument("--nodes", type=int, default=64)
    parser.add_argument("--gpus", type=int, default=8, help="of a node")
    parser.add_argument("--clients-per-gpu", type=int, default=1)
    parser.add_argument("--cohorts", default="64,1000,10000")
    parser.add_argument("--steps", type=int, default=100, help="of a client in a round")
    parser.add_argument("--step-s", type=float, default=0.75, help="seconds (VRT, fp32, H100)")
    parser.add_argument("--link-gbit", type=float, default=25.0, help="of a node, each way")
    options = parser.parse_args()
    num_params = count_params(options.network)
    costs = Costs(combine_bytes_s(), plan_s(512, 1_000), object_s(1_000))
    print(
        f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}. Measured: a core combines "
        f"{costs.combine_bytes_s / 1e9:.1f} GB of updates a second; the driver plans a client in "
        f"{1e3 * costs.plan_s:.2f} CPU ms and keeps an object in {1e3 * costs.object_s:.2f}.\n"
        f"{options.network}: {num_params:,} parameters, {BYTES * num_params / 1e6:.0f} MB; "
        f"{options.nodes} nodes x {options.gpus} GPUs x {options.clients_per_gpu}, "
        f"{options.link_gbit:g} Gbit/s a node; {options.steps} steps of {options.step_s:g} s\n"
    )
    for cohort in map(int, options.cohorts.split(",")):
        load = Load(
            num_params,
            cohort,
            options.nodes,
            options.gpus,
            options.clients_per_gpu,
            options.steps,
            options.step_s,
            options.link_gbit,
        )
        few = max(1, min(load.nodes, BYTES * num_params // _LEAST_SLICE_BYTES))
        columns = {f"{n} slices": column(load, costs, n) for n in sorted({few, load.nodes})}
        columns = {"whole, on one node": column(load, costs, 1), **columns}
        print(f"{cohort:,} clients a round: training takes {load.train_s:,.0f} s\n")
        print(
            "| updates are combined | "
            + " | ".join(columns)
            + " |\n|"
            + "---|" * (1 + len(columns))
        )
        for name in columns["whole, on one node"]:
            print(f"| {name} | " + " | ".join(each[name] for each in columns.values()) + " |")
        print(flush=True)


def column(load: Load, costs: Costs, num_slices: int) -> dict[str, str]:
    """What a round takes besides training, if updates are combined in slices."""
    slices = list(load.trained)[:num_slices] if num_slices > 1 else []
    came = received(load.num_params, load.trained, DRIVER, slices)
    held = made(load.num_params, load.trained, DRIVER, slices)
    model = BYTES * load.num_params
    busiest = max(came.values(), default=0)
    combine_s = load.cohort * model / num_slices / costs.combine_bytes_s
    num_objects = load.cohort * (num_slices + 1)
    driver_s = load.cohort * costs.plan_s + num_objects * costs.object_s
    most_held = max(held.values())
    return {
        "the network carries, GB": f"{sum(came.values()) / 1e9:,.1f}",
        "the busiest node receives, GB": f"{busiest / 1e9:,.2f}",
        "which takes, s": f"{load.link_s(busiest):,.1f}",
        "combining, CPU s on a node": f"{combine_s:,.1f}",
        "objects": f"{num_objects:,}",
        "the driver's planning and objects, CPU s": f"{driver_s:,.1f}",
        "a node's updates in its object store, GB": f"{most_held / 1e9:,.2f}",
        "the longest of these, of the training time": (
            f"{max(load.link_s(busiest), combine_s, driver_s) / load.train_s:.0%}"
        ),
    }


def count_params(network: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in models.build(network).parameters())


def combine_bytes_s(num_params: int = 9_000_000, num_clients: int = 16) -> float:
    """FedAvg's own sum, of one vector again and again: reading is what counts."""
    vector = np.ones(num_params, np.float32)
    algorithm = fedavg.Algorithm(fedavg.Config())

    def uploads() -> Iterator[Vectors]:
        for _ in range(num_clients):
            yield {"params": vector}

    def combine() -> float:
        began = time.process_time()
        weights = [1 / num_clients] * num_clients
        info = Round(1, 1, num_clients, num_clients, ())
        algorithm.aggregate(uploads(), weights, {"params": vector}, info)
        return time.process_time() - began

    return num_clients * vector.nbytes / min(combine() for _ in range(3))


def plan_s(num_slots: int, cohort: int) -> float:
    """The real executor on a simulated cluster."""
    rng = random.Random(0)
    cluster = Cluster([rng.uniform(20, 200) for _ in range(2 * cohort)], num_slots)
    with simulated(cluster) as executor:
        began = time.process_time()
        run_rounds(executor, [rng.sample(range(2 * cohort), cohort)])
        return (time.process_time() - began) / cohort


def object_s(num_objects: int) -> float:
    """On two nodes of a local cluster: this process owns what one makes and the other reads."""
    cluster = LocalCluster()
    common = {"object_store_memory": 400 << 20, "include_dashboard": False}
    try:
        cluster.add_node(num_cpus=1, resources={"maker": 1}, **common)
        cluster.add_node(num_cpus=1, resources={"reader": 1}, **common)
        ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)
        make: Any = ray.remote(resources={"maker": 1}, num_returns=num_objects)(_make)
        read: Any = ray.remote(resources={"reader": 1})(_read)
        # The workers start here, and not below.
        ray.get([make.options(num_returns=1).remote(1), read.remote([])], timeout=60)
        began = time.process_time()
        ray.get(read.remote(make.remote(num_objects)), timeout=300)
        return (time.process_time() - began) / num_objects
    finally:
        ray.shutdown()
        cluster.shutdown()


def _make(count: int) -> Any:
    # Ray sends what is smaller with the reply, and keeps no object of it.
    made = [np.full(40_000, i, np.float32) for i in range(count)]
    return made if count > 1 else made[0]


def _read(refs: Sequence[Any]) -> float:
    return float(sum(ray.get(ref, timeout=60)[0] for ref in refs))


if __name__ == "__main__":
    main()
