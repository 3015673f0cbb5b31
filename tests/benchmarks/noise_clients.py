"""Clients that add noise instead of training: all that their processes import of the benchmarks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedvsr.algorithms import fedavg
from fedvsr.federation.executors import Clients
from fedvsr.messages import ClientTask
from fedvsr.models import tiny
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer, _Course
from tests.benchmarks.peers.workload import noise, sizes


class NoiseTrainer(LocalTrainer):
    """All that a client does but to read samples and to take steps."""

    def __init__(self, num_params: int, local: LocalConfig) -> None:
        super().__init__(tiny.Config(), fedavg.Config(), local)
        self.network = nn.ParameterList([torch.zeros(count) for count in sizes(num_params)])

    def _loader(self, *_: Any) -> Any:
        return super()._loader(ClientTask(0, 1, 1, 0), ())

    def _descend(self, task: ClientTask, *_: Any) -> _Course:
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter.add_(noise(task.client_id))
        return _Course([1.0], [1.0], [1.0], 1)


@dataclass(frozen=True)
class NoiseClients(Clients):
    num_params: int = 0

    def make_trainer(self) -> LocalTrainer:
        return NoiseTrainer(self.num_params, self.local)
