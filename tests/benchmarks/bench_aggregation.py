"""What the driver holds while it sums: `python -m tests.benchmarks.bench_aggregation`.

The rounds are the package's own (`run_rounds`, `RayExecutor`), in this process. A few actors
without a network play all clients, so that a cohort may have thousands. P is the number of
parameters.
"""

from __future__ import annotations

import argparse
import resource
import threading
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import ray

from fedvsr.algorithms import fedavg
from fedvsr.federation import connection, placement, remote
from fedvsr.federation.actors import ActorPool, LiveActor
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.placement import Place
from fedvsr.federation.pulse import CONTROL, Pulse
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.federation.rounds import RoundFinished, RoundSetup, RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.messages import ClientReport, ClientTask, Vectors
from fedvsr.training.updates import UNCHANGED
from tests.benchmarks.federation_rounds import clients_of

MIB = 2**20


class Player:
    """Plays clients: adds a number to the parameters."""

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def ready(self) -> None:
        """Nothing is built."""

    def train(self, task: ClientTask, shared: Vectors, *_: Any) -> tuple[Any, ...]:
        report = ClientReport(task.client_id, task.round_idx, 1, 1, 1.0, 1.0, 0.0)
        return report, {}, {"params": shared["params"] + np.float32(task.client_id)}


class PlayerPool(ActorPool):
    players: ClassVar[list[Any]]

    def start(self, client_id: int, place: Place) -> LiveActor:
        handle = self.players[client_id % len(self.players)]
        return LiveActor(handle, place, handle.ready.remote(), Pulse(handle))

    def discard(self, client_id: int) -> None:
        """The players stay."""

    def close(self) -> None:
        for player in self.players:
            ray.kill(player)


class PlayerExecutor(RayExecutor):
    make_pool = PlayerPool


def resident(name: str) -> int:
    """Bytes of this process by a name of /proc: RssAnon is its own, RssShmem is shared memory."""
    with open("/proc/self/status") as status:
        (line,) = (line for line in status if line.startswith(name))
    return 1024 * int(line.split()[1])


class Watch(threading.Thread):
    """The most bytes that this process has had, beyond those at the start."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.ended = threading.Event()
        self.base = {name: resident(name) for name in ("RssAnon", "RssShmem")}
        self.most = dict.fromkeys(self.base, 0)

    def run(self) -> None:
        while not self.ended.wait(0.002):
            for name, base in self.base.items():
                self.most[name] = max(self.most[name], resident(name) - base)


def counting(fetch: Callable[..., Any], live: list[int]) -> Callable[..., Any]:
    """Count the updates that are held at each fetch, the new one included."""
    held = list[weakref.ref[Any]]()

    def counted(*arguments: Any) -> Any:
        upload = fetch(*arguments)
        held[:] = [ref for ref in held if ref() is not None]
        held.append(weakref.ref(upload["params"]))
        live.append(len(held))
        return upload

    return counted


def measure(options: argparse.Namespace, cohort: int) -> None:
    config = ClusterConfig(slots=options.slots, max_live_clients=cohort)
    placed = placement.request(
        placement.ask(config, num_threads=1, cohort=cohort), connection.here()
    )
    placed.require_ready(30.0)
    make: Any = ray.remote(num_cpus=0, concurrency_groups={CONTROL: 1})  # type: ignore[call-overload]
    PlayerPool.players = [make(Player).remote() for _ in range(options.slots)]
    clients = clients_of(argparse.Namespace(clients=cohort, params=options.params))
    executor = PlayerExecutor(clients, config, placed)
    live, fetch = list[int](), remote._fetch
    remote._fetch = counting(fetch, live)
    setup = RoundSetup(
        fedavg.Algorithm(fedavg.Config()),
        FederationConfig(num_rounds=2, clients_per_round=cohort),
        UNCHANGED,
        [1] * cohort,
        (slice(0, options.params),),
        seed=0,
    )
    # The first round warms up what is imported and allocated once.
    first, second = (
        replace(setup, config=FederationConfig(num_rounds=1, clients_per_round=cohort)),
        setup,
    )
    state = RunState(0, {"params": np.zeros(options.params, np.float32)}, {})
    for each in (first, second):
        live.clear()
        watch = Watch()
        watch.start()
        began, cpu_s = time.perf_counter(), time.process_time()
        for event in run_rounds(state, each, executor, ClientStates()):
            if isinstance(event, RoundFinished):
                last = event
        watch.ended.set()
        watch.join(5)
        state = last.state
        wall_s, cpu_s = time.perf_counter() - began, time.process_time() - cpu_s
    remote._fetch = fetch
    executor.close()
    placed.release()
    vector = 4 * options.params
    print(
        f"cohort {cohort:5d}: {max(live)} updates held at once; beyond the vector it began with, "
        f"own memory {watch.most['RssAnon'] / vector:.2f} vectors, pages of the object store seen "
        f"{watch.most['RssShmem'] / vector:.1f}; {wall_s:.1f} s, {cpu_s:.1f} CPU-s of the driver, "
        f"{1000 * last.aggregate_s:.0f} ms to sum",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=int, default=1_000_000)
    parser.add_argument("--cohorts", type=int, nargs="+", default=[4, 64, 1000])
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--store-mib", type=int, default=1024)
    options = parser.parse_args()
    print(
        f"P = {options.params:,}: a vector has {4 * options.params / MIB:.1f} MiB; "
        f"the object store has {options.store_mib} MiB"
    )
    connection.connect("local", options.store_mib * MIB)
    try:
        for cohort in options.cohorts:
            measure(options, cohort)
    finally:
        connection.disconnect()
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"most memory of this process: {most:.0f} MiB")


if __name__ == "__main__":
    # By its own name, so that Ray's workers import it rather than get it as a pickle.
    from tests.benchmarks import bench_aggregation

    bench_aggregation.main()
