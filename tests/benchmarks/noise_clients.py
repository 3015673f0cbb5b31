"""Clients that add noise instead of training: all that their processes import of the benchmarks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedvsr.algorithms import fedavg
from fedvsr.federation.executors import Clients
from fedvsr.layout import Layout
from fedvsr.messages import ClientTask
from fedvsr.models import tiny
from fedvsr.params import ParamTable
from fedvsr.training.config import LocalConfig
from fedvsr.training.descent import Course, Descent
from fedvsr.training.local import LocalTrainer
from fedvsr.training.parameters import Parameters
from tests.benchmarks.peers.workload import noise, sizes


class NoiseDescent(Descent):
    """Adds noise to the parameters in the place of steps."""

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._params = params

    def run(self, task: ClientTask, *_: Any) -> Course:
        with torch.no_grad():
            for parameter in self._params:
                parameter.add_(noise(task.client_id))
        return Course([1.0], [1.0], [1.0], 1)


class NoiseTrainer(LocalTrainer):
    """All that a client does but to read samples and to take steps."""

    def __init__(self, num_params: int, local: LocalConfig) -> None:
        super().__init__(tiny.Config(), fedavg.Config(), local)
        network = nn.ParameterList([torch.zeros(count) for count in sizes(num_params)])
        layout = Layout.shared(ParamTable.of(network))
        self.parameters = Parameters(network, layout, local, None, "noise")
        self.descent = NoiseDescent(self.parameters.shared)

    def _loader(self, *_: Any) -> Any:
        return super()._loader(ClientTask(0, 1, 1, 0), ())


@dataclass(frozen=True)
class NoiseClients(Clients):
    num_params: int = 0

    def make_trainer(self) -> LocalTrainer:
        return NoiseTrainer(self.num_params, self.local)
