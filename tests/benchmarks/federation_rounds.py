"""Rounds by this package's own loop and Ray executor, in which clients add noise and train nothing.

A command of its own, so that all it starts can be watched: see `bench_federation`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from fedvsr.algorithms import fedavg
from fedvsr.data.clips import Clip
from fedvsr.federation import connection, driver, placement
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Executor, Fault, SerialExecutor
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.federation.rounds import RoundFinished, RoundSetup, RunState, run_rounds
from fedvsr.federation.sampling import FederationConfig
from fedvsr.models import tiny
from fedvsr.training.config import LocalConfig
from fedvsr.training.updates import UNCHANGED
from tests.benchmarks.noise_clients import NoiseClients
from tests.benchmarks.peers.workload import Rounds, digest, noise, parse, private_bytes, sizes


def clients_of(options: argparse.Namespace) -> NoiseClients:
    # Every registered client has a clip, whose frames nobody reads.
    clips = [
        (Clip(f"clip-{i:06d}", f"class {i % 100}", "/data", 100, 720, 1280, 4, f"{i:064x}"),)
        for i in range(options.clients)
    ]
    return NoiseClients(
        tiny.Config(),
        fedavg.Config(),
        # No samples are read, so there need be no threads to read them.
        LocalConfig(steps=1, num_threads=1, num_workers=0),
        clips,
        num_params=options.params,
    )


def rounds_of(
    options: argparse.Namespace, num_rounds: int, make: Callable[..., Executor], *stop: Any
) -> Iterator[dict[str, Any]]:
    """What happens, as a driver tells of it."""
    yield {"base": {"pid": os.getpid(), "private_bytes": private_bytes()}}
    executor = make(clients_of(options), **dict(zip(["stop"], stop, strict=False)))
    ends = np.cumsum([0, *sizes(options.params)]).tolist()
    state = RunState(0, {"params": np.zeros(options.params, np.float32)}, {})
    events = run_rounds(
        state,
        RoundSetup(
            fedavg.Algorithm(fedavg.Config()),
            FederationConfig(num_rounds=num_rounds, clients_per_round=options.cohort),
            UNCHANGED,
            sizes=[1] * options.clients,
            tensors=tuple(map(slice, ends[:-1], ends[1:])),
            seed=0,
        ),
        executor,
        ClientStates(),
    )
    # Else the first parameters are held to the end.
    del state
    expected = 0.0
    for event in events:
        assert not isinstance(event, Fault), event
        if not isinstance(event, RoundFinished):
            yield {}
            continue
        expected += np.mean([noise(report.client_id) for report in event.reports])
        yield {
            "round": {
                "gap_s": event.gap_s,
                "up": sum(report.upload_bytes for report in event.reports),
                "down": event.download_bytes,
                "train_s": event.train_s,
                "aggregate_s": event.aggregate_s,
                "client_s": sum(report.train_s for report in event.reports) / len(event.reports),
            }
        }
    mean = float(event.state.params.mean(dtype=np.float64))
    yield {"result": digest([event.state.params])}
    assert abs(mean / expected - 1) < 1e-3, f"the mean is {mean}, not {expected}"
    executor.close()


def start(options: argparse.Namespace, num_rounds: int) -> Iterator[dict[str, Any]]:
    """The rounds, in a driver of their own unless all is to be in this process."""
    if options.serial:
        yield from rounds_of(options, num_rounds, SerialExecutor)
        return
    cluster = ClusterConfig(
        slots=options.slots,
        max_live_clients=options.live,
        isolation="slot" if options.shared else "client",
    )
    # A round's updates and those of the round before, which go by and by.
    connection.connect("local", max(4 * options.params * (2 * options.cohort + 6), 2**28))
    try:
        wanted = placement.ask(cluster, num_threads=1, cohort=options.cohort)
        placed = placement.request(wanted, connection.here())
        placed.require_ready(cluster.placement_timeout_s)
        make = partial(RayExecutor, config=cluster, placement=placed)
        yield from driver.drive(partial(rounds_of, options, num_rounds, make), placed)
    finally:
        connection.disconnect()


def main() -> None:
    options = parse(live=8, serial=0, shared=0)
    rounds = Rounds(options.rounds)
    for event in start(options, rounds.num_all):
        if "base" in event:
            rounds.base(**event["base"])
        elif "round" in event:
            rounds.ended(**event["round"])
        elif "result" in event:
            rounds.result(event["result"])


if __name__ == "__main__":
    # By its own name, so that Ray's workers import it rather than get it as a pickle.
    from tests.benchmarks import federation_rounds

    federation_rounds.main()
