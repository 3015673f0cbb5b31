"""Clients that fail in the middle of their training, once or every time, in real processes."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedvsr.errors import UserError
from fedvsr.federation.executors import Clients, SerialExecutor
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask
from fedvsr.training.descent import Course, Descent
from fedvsr.training.local import LocalTrainer


@dataclass(frozen=True)
class Failure:
    """A failure of one client in the training of one round."""

    how: str
    """A key of `HOW`, or `nan`: the loss is not a number."""
    client_id: int
    round_idx: int
    marker: Path
    """Written with the process id of the client when it fails."""
    always: bool = False
    """Whether it fails at every attempt, not only at the first."""

    def is_due(self, client_id: int, round_idx: int) -> bool:
        matches = (client_id, round_idx) == (self.client_id, self.round_idx)
        return matches and (self.always or not self.marker.exists())


@dataclass(frozen=True)
class FaultyClients(Clients):
    """Clients of which some fail."""

    failures: tuple[Failure, ...] = ()

    def make_trainer(self) -> LocalTrainer:
        trainer = super().make_trainer()
        trainer.descent = FaultyDescent(
            self.failures,
            trainer.network,
            trainer.parameters,
            trainer.gradients,
            trainer.algorithm,
            self.local,
            self.update.reject_nonfinite,
        )
        return trainer


class FaultyDescent(Descent):
    """Fails after the second step of a task for which a failure is due."""

    def __init__(self, failures: tuple[Failure, ...], *arguments: Any) -> None:
        super().__init__(*arguments)
        self.failures = failures

    def run(self, task: ClientTask, *arguments: Any) -> Course:
        self.num_steps, self.task = 0, task
        return super().run(task, *arguments)

    def _step(self, *arguments: Any) -> tuple[float, float]:
        loss, vsr_loss = super()._step(*arguments)
        self.num_steps += 1
        if self.num_steps == 2:
            for failure in self.failures:
                if failure.is_due(self.task.client_id, self.task.round_idx):
                    failure.marker.write_text(str(os.getpid()))
                    if failure.how == "nan":
                        return math.nan, vsr_loss
                    HOW[failure.how]()
        return loss, vsr_loss


def _raise() -> None:
    raise OSError("a loose cable")


def _raise_user_error() -> None:
    raise UserError("clip 7 is damaged")


def _hang() -> None:
    time.sleep(600)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def _eat_memory() -> None:
    held = []
    for _ in range(100):
        held.append(np.ones(2**25))  # 256 MiB
        time.sleep(0.05)
    time.sleep(60)


def _fill_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


HOW: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "user_error": _raise_user_error,
    "hang": _hang,
    "die": _die,
    "stop": _stop,
    "eat_memory": _eat_memory,
    "fill_gpu": _fill_gpu,
}


def faulty(clients: Clients, *failures: Failure) -> FaultyClients:
    """The same clients, some of which fail."""
    return FaultyClients(**vars(clients), failures=failures)


class FaultyExecutor:
    """Makes executors whose clients fail as told; a `make_executor` of `launch.on_cluster`."""

    def __init__(self, *failures: Failure) -> None:
        self.failures = failures

    def __call__(self, clients: Clients, **arguments: Any) -> RayExecutor:
        return RayExecutor(faulty(clients, *self.failures), **arguments)

    def serial(self, clients: Clients) -> SerialExecutor:
        """The same failures in this process."""
        return SerialExecutor(faulty(clients, *self.failures))
