"""What each algorithm costs beside FedAvg: `make bench-algorithms`, or this file with arguments.

Clients train the demo RVRT by its recipe (4 frames, crops of 128 pixels) on one CPU thread; their
time is a median over pairs of FedAvg and the method, in turns, so that a machine's drift cancels.
The server folds vectors as long as the paper's RVRT's; its time is one of pairs too. The detail
loss is also timed by itself: a share of a step that noise of whole steps cannot hide. Energy, GPU
memory and GPU use are ratios to FedAvg's as well; a dash where this machine does not tell.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from fedvsr import algorithms, models
from fedvsr.algorithms.base import AlgorithmConfig, FedAvg, start
from fedvsr.config import load_config
from fedvsr.data.config import DataConfig
from fedvsr.data.split import prepare
from fedvsr.determinism import scoped_torch
from fedvsr.energy import Meter
from fedvsr.lookup import load, names
from fedvsr.losses import charbonnier, high_frequency
from fedvsr.messages import ClientReport, ClientTask, Round, Vectors
from fedvsr.params import flatten
from fedvsr.training.local import LocalTrainer
from tests.conftest import moving_texture, write_video

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=10, seed=0)


class Cost(NamedTuple):
    """What a piece of work took; 0 for what this machine does not tell."""

    seconds: float
    energy_j: float = 0
    gpu_memory_bytes: int = 0
    gpu_utilisation: float = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--algorithms", default=",".join(names("fedvsr.algorithms")))
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--steps", type=int, default=4, help="local steps of a round")
    parser.add_argument("--size", type=int, default=12_800_000, help="parameters at the server")
    parser.add_argument("--clients", type=int, default=5, help="clients a round at the server")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        client = Client(Path(folder), options.steps)
        step_s, loss_s = client.detail_loss_s()
        device = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU, one thread"
        print(
            f"{device}; torch {torch.__version__}; median of {options.pairs} pairs; server: "
            f"{options.clients} clients, {options.size:,} parameters\n\n"
            f"A step of the demo RVRT takes {1e3 * step_s:.0f} ms, the detail loss with its "
            f"gradient {1e3 * loss_s:.2f} ms more than none: {loss_s / step_s:.2%}.\n"
        )
        columns = ("local step", "(quartiles)", "energy", "GPU memory", "GPU use")
        columns += ("aggregation", "(quartiles)", "energy")
        sizes = ("down", "up", "client keeps", "server keeps")
        print("| algorithm | " + " | ".join(columns + sizes) + " |")
        print("|" + "---|" * (1 + len(columns + sizes)))
        for name in options.algorithms.split(","):
            config = load("fedvsr.algorithms", name).Config()
            algorithm = algorithms.build(config)
            local = ("as fedavg", "", "", "", "")
            if differs(algorithm):
                costs = paired(client.round(load_fedavg()), client.round(config), options.pairs)
                local = (
                    *spread(costs, "seconds"),
                    *(spread(costs, field)[0] for field in Cost._fields[1:]),
                )
            costs = paired(
                Server(load_fedavg(), options).fold, Server(config, options).fold, options.pairs
            )
            server = (*spread(costs, "seconds"), spread(costs, "energy_j")[0])
            cells = (name, *local, *server, *client.sizes(config))
            print("| " + " | ".join(cells) + " |", flush=True)


def load_fedavg() -> AlgorithmConfig:
    config: AlgorithmConfig = load("fedvsr.algorithms", "fedavg").Config()
    return config


def differs(algorithm: FedAvg) -> bool:
    """Whether a client computes anything that FedAvg's does not."""
    return bool(algorithm.corrects_gradients or algorithm.contrasts or algorithm.config.lambda_hifr)


class Client:
    """Local rounds on one synthetic clip."""

    def __init__(self, folder: Path, steps: int) -> None:
        self.config = load_config("rvrt", ["model.size=demo", "data.videos=[none.mp4]"])
        self.local = self.config.local.model_copy(update={"steps": steps})
        write_video(folder / "clip.mp4", moving_texture(num_frames=8, height=144, width=144))
        data = DataConfig(
            videos=(str(folder / "clip.mp4"),), clip_frames=4, num_clients=1, cache_dir=str(folder)
        )
        self.clips = prepare(data, 0, lambda *_: None).train
        self.size = flatten(models.build_fresh(self.config.model)).size

    def round(self, config: AlgorithmConfig) -> Callable[[], Cost]:
        """One that trains a second round, with the first one's state, and says what it took."""
        trainer = LocalTrainer(self.config.model, config, self.local)
        server = start(trainer.algorithm, flatten(trainer.network))
        shared = {name: server[name] for name in trainer.algorithm.broadcast}
        state = trainer.train(TASK, shared, {}, self.clips)[1].state

        def train() -> Cost:
            report = trainer.train(TASK, shared, state, self.clips)[0]
            used = (report.energy_j, report.gpu_memory_bytes, report.gpu_utilisation)
            return Cost(report.train_s, *used)

        return train

    def sizes(self, config: AlgorithmConfig) -> tuple[str, ...]:
        """What travels and stays, in units of the parameters' bytes, as measured."""
        local = self.local.model_copy(update={"steps": 1})
        trainer = LocalTrainer(self.config.model, config, local)
        server = start(trainer.algorithm, flatten(trainer.network))
        shared = {name: server[name] for name in trainer.algorithm.broadcast}
        _, update = trainer.train(TASK, shared, {}, self.clips)
        kept = {name: vector for name, vector in server.items() if name != "params"}
        parts = (shared, update.upload, update.state, kept)
        return tuple(
            f"{sum(vector.nbytes for vector in part.values()) / (4 * self.size):.3g}x"
            for part in parts
        )

    def detail_loss_s(self) -> tuple[float, float]:
        """Median seconds of a FedAvg step, and of the detail loss with its gradient beyond it."""
        train = self.round(load_fedavg())
        step_s = statistics.median(train().seconds / self.local.steps for _ in range(3))
        crop, frames = self.local.crop, self.local.num_frames
        sr = torch.rand(1, frames, 3, crop, crop, requires_grad=True)
        gt = torch.rand(1, frames, 3, crop, crop)

        def timed(weight: float) -> float:
            began = time.perf_counter()
            loss = charbonnier(sr, gt)
            if weight:
                loss = loss + weight * high_frequency(sr, gt)
            loss.backward()
            return time.perf_counter() - began

        with scoped_torch(0, 1):
            more = [timed(1.0) - timed(0.0) for _ in range(200)]
        return step_s, statistics.median(more)


class Server:
    """A round's aggregation over uploads in memory."""

    def __init__(self, config: AlgorithmConfig, options: argparse.Namespace) -> None:
        self.algorithm = algorithms.build(config)
        random = np.random.default_rng(0)
        base = random.standard_normal(options.size, np.float32)
        self.server = start(self.algorithm, base)
        self.uploads: list[Vectors] = [
            {name: np.abs(base) + np.float32(0.01 * i) for name in self.algorithm.upload}
            for i in range(options.clients)
        ]
        self.reports = [
            ClientReport(
                client_id=i,
                round_idx=1,
                num_samples=4 + i,
                num_steps=4,
                loss=0.1 + 0.01 * i,
                vsr_loss=0.1,
                train_s=0.0,
                first_loss=0.1,
                effective_steps=4.0,
                lipschitz=1.0,
                update_norm=1.0,
                label_counts={"a": 1 + i, "b": 1},
            )
            for i in range(options.clients)
        ]
        tensors = tuple(slice(i, i + 10_000) for i in range(0, options.size, 10_000))
        self.round_info = Round(2, 10, 40, options.clients, tensors)

    def fold(self) -> Cost:
        """What weighing, folding and the server's step take."""
        began = time.perf_counter()
        with Meter() as meter:
            weights = self.algorithm.weights(self.reports, 10)
            aggregated = self.algorithm.aggregate(
                iter(self.uploads), weights, self.server, self.round_info
            )
            self.algorithm.server_step(self.server, aggregated.vectors, self.round_info)
        return Cost(time.perf_counter() - began, meter.energy_j or 0)


def paired(
    one: Callable[[], Cost], other: Callable[[], Cost], pairs: int
) -> list[tuple[Cost, Cost]]:
    """Costs of `other` and `one`, taken in turns, each pair in the reverse order of the last."""
    one(), other()
    costs = []
    for i in range(pairs):
        if i % 2:
            before, after = one(), other()
        else:
            after, before = other(), one()
        costs.append((after, before))
    return costs


def spread(costs: list[tuple[Cost, Cost]], field: str) -> tuple[str, str]:
    """Median and quartiles of the ratios of a field; dashes if it is not known."""
    values = [(getattr(after, field), getattr(before, field)) for after, before in costs]
    if not all(min(pair) > 0 for pair in values):
        return "-", "-"
    ratios = [after / before for after, before in values]
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return f"{middle:.3f}", f"{low:.3f} to {high:.3f}"


if __name__ == "__main__":
    main()
