"""pfl-research: `SimulatedBackend` in one process, which is how it simulates on one device."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from workload import Rounds, digest, noise, parse, private_bytes, sizes


class Network(torch.nn.Module):
    def __init__(self, num_params: int) -> None:
        super().__init__()
        self.tensors = torch.nn.ParameterList([torch.zeros(n) for n in sizes(num_params)])

    def loss(self, *_: Any) -> torch.Tensor:
        raise AssertionError("nothing is trained")

    def metrics(self, *_: Any, **__: Any) -> dict[str, Any]:
        return {}


class Noise(FederatedAveraging):
    """FedAvg whose clients add noise."""

    def train_one_user(
        self, initial_model_state: Any, model: Any, user_dataset: Any, central_context: Any
    ) -> Any:
        with torch.no_grad():
            for parameter in model.pytorch_model.parameters():
                parameter.add_(noise(int(user_dataset.user_id)))
        return model.get_model_difference(initial_model_state), Metrics()


class Reporting(TrainingProcessCallback):
    def __init__(self, rounds: Rounds) -> None:
        self.rounds = rounds

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self.rounds.ended()
        return False, Metrics()


def main() -> None:
    options = parse()
    rounds = Rounds(options.rounds)
    rounds.base(os.getpid(), private_bytes())
    network = Network(options.params)
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    sampler = get_user_sampler("random", [str(i) for i in range(options.clients)])

    def user(user_id: str) -> Dataset:
        return Dataset(raw_data=[np.zeros((1, 1), np.float32)], user_id=user_id)

    data = FederatedDataset(user, sampler)
    settings = NNAlgorithmParams(
        central_num_iterations=rounds.num_all,
        # The first iteration evaluates all the same, by `metrics`, which costs nothing.
        evaluation_frequency=10**9,
        train_cohort_size=options.cohort,
        val_cohort_size=None,
    )
    Noise().run(
        settings,
        SimulatedBackend(training_data=data, val_data=data),
        model,
        NNTrainHyperParams(local_num_epochs=1, local_learning_rate=1.0, local_batch_size=None),
        NNEvalHyperParams(local_batch_size=None),
        callbacks=[Reporting(rounds)],
        send_metrics_to_platform=False,
    )
    rounds.result(digest(parameter.detach().numpy() for parameter in network.parameters()))


if __name__ == "__main__":
    main()
