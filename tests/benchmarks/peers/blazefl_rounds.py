"""BlazeFL: its FedAvg server and its pool of threads, as many as there are slots."""

from __future__ import annotations

import os
from typing import Any

import torch
from blazefl.contrib.fedavg import (
    FedAvgBaseServerHandler,
    FedAvgThreadPoolClientTrainer,
    FedAvgUplinkPackage,
)
from blazefl.core import deserialize_model, serialize_model
from workload import Rounds, digest, noise, parse, private_bytes, sizes


class Network(torch.nn.Module):
    def __init__(self, num_params: int) -> None:
        super().__init__()
        # A client gets a network per round, which the global parameters then fill.
        self.tensors = torch.nn.ParameterList([torch.empty(n) for n in sizes(num_params)])


class Selector:
    def __init__(self, num_params: int) -> None:
        self.num_params = num_params

    def select_model(self, _: str) -> torch.nn.Module:
        return Network(self.num_params)


class NoData:
    def get_dataloader(self, *_: Any, **__: Any) -> list[Any]:
        return []


class Noise(FedAvgThreadPoolClientTrainer):
    def train(
        self, model: torch.nn.Module, model_parameters: torch.Tensor, cid: int, **_: Any
    ) -> FedAvgUplinkPackage:
        deserialize_model(model, model_parameters)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(noise(cid))
        return FedAvgUplinkPackage(cid, serialize_model(model), 1)

    def progress_fn(self, it: Any) -> Any:
        return it


def main() -> None:
    options = parse()
    rounds = Rounds(options.rounds)
    rounds.base(os.getpid(), private_bytes())
    selector, data = Selector(options.params), NoData()
    server = FedAvgBaseServerHandler(
        selector,
        "noise",
        data,
        global_round=rounds.num_all,
        num_clients=options.clients,
        sample_ratio=options.cohort / options.clients,
        device="cpu",
        batch_size=1,
        seed=0,
    )
    with torch.no_grad():
        for parameter in server.model.parameters():
            parameter.zero_()
    trainer = Noise(
        selector,
        "noise",
        data,
        device="cpu",
        num_clients=options.clients,
        epochs=1,
        batch_size=1,
        lr=1.0,
        seed=0,
        num_parallels=options.slots,
    )
    while not server.is_stopped():
        trainer.local_process(server.downlink_package(), server.sample_clients())
        for package in trainer.uplink_package():
            server.load(package)
        rounds.ended()
    rounds.result(digest([serialize_model(server.model).numpy()]))


if __name__ == "__main__":
    main()
