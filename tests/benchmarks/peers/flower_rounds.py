"""Flower: `run_simulation` with its Ray backend, FedAvg, no evaluation."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from workload import Rounds, digest, noise, parse, private_bytes, sizes

client_app, server_app = ClientApp(), ServerApp()


@client_app.train()
def train(message: Message, context: Context) -> Message:
    client_id = int(context.node_config["partition-id"])
    tensors = message.content["arrays"].to_torch_state_dict()
    with torch.no_grad():
        for tensor in tensors.values():
            tensor.add_(noise(client_id))
    metrics = MetricRecord({"num-examples": 1})
    content = RecordDict({"arrays": ArrayRecord(tensors), "metrics": metrics})
    return Message(content=content, reply_to=message)


class Reporting(FedAvg):
    """Tells when a round has been aggregated, and lets no lost client pass."""

    def __init__(self, rounds: Rounds, **settings: Any) -> None:
        super().__init__(**settings)
        self.rounds = rounds

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        replies = list(replies)
        errors = [reply.error.reason for reply in replies if reply.has_error()]
        # A run whose clients die ends well otherwise.
        if errors or len(replies) != options.cohort:
            os._exit(3)
        aggregated = super().aggregate_train(server_round, replies)
        self.rounds.ended()
        return aggregated


@server_app.main()
def serve(grid: Grid, context: Context) -> None:
    rounds = Rounds(options.rounds)
    rounds.base(os.getpid(), private_bytes())
    strategy = Reporting(
        rounds,
        fraction_train=options.cohort / options.clients,
        fraction_evaluate=0.0,
        min_train_nodes=options.cohort,
        min_available_nodes=options.clients,
    )
    tensors = {f"tensor{i}": torch.zeros(n) for i, n in enumerate(sizes(options.params))}
    initial = ArrayRecord(tensors)
    result = strategy.start(grid=grid, initial_arrays=initial, num_rounds=rounds.num_all)
    rounds.result(digest(array.numpy() for array in result.arrays.values()))


if __name__ == "__main__":
    options = parse()
    run_simulation(
        server_app=server_app,
        client_app=client_app,
        num_supernodes=options.clients,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": options.slots},
        },
    )
