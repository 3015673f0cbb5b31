"""What Ray's object store alone takes: actors that add noise to one vector, a driver that averages.

No network, no report, no check: as little as a design on Ray can do.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import ray

from tests.benchmarks.peers.workload import Rounds, noise, parse, private_bytes

CHUNK = 1 << 16


@ray.remote(num_cpus=1)
class Client:
    def train(self, params: Any, client_id: int) -> Any:
        return params + np.float32(noise(client_id))


def average(vectors: list[Any], out: Any) -> None:
    """Every vector is read once, the mean is written once."""
    weight, scratch = np.float32(1 / len(vectors)), np.empty(CHUNK, np.float32)
    for start in range(0, out.size, CHUNK):
        part = slice(start, start + CHUNK)
        mean = np.multiply(vectors[0][part], weight, out=out[part])
        for vector in vectors[1:]:
            mean += np.multiply(vector[part], weight, out=scratch[: mean.size])


def main() -> None:
    options = parse()
    rounds = Rounds(options.rounds)
    store = max(4 * options.params * (2 * options.cohort + 6), 2**28)
    ray.init(
        num_cpus=options.slots,
        include_dashboard=False,
        object_store_memory=store,
        logging_level="ERROR",
        log_to_driver=False,
    )
    clients: list[Any] = [Client.remote() for _ in range(options.slots)]
    rounds.base(os.getpid(), private_bytes())
    params, spare = np.zeros(options.params, np.float32), np.empty(options.params, np.float32)
    draws = np.random.default_rng(0)
    for _ in range(rounds.num_all):
        sent = ray.put(params)
        cohort = draws.choice(options.clients, options.cohort, replace=False)
        returned = [
            clients[i % options.slots].train.remote(sent, int(client_id))
            for i, client_id in enumerate(cohort)
        ]
        average(ray.get(returned), spare)
        params, spare = spare, params
        del returned, sent
        rounds.ended()
    ray.shutdown()


if __name__ == "__main__":
    main()
