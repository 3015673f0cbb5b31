"""Clients that fail in the middle of their training, once or each time, in real processes."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fedvsr.errors import UserError
from fedvsr.federation.executors import Clients
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.training.local import LocalTrainer


@dataclass(frozen=True)
class Failure:
    """What goes wrong, in which client's training of which round."""

    how: str
    client_id: int
    round_idx: int
    marker: Path
    """Exists once it has gone wrong."""
    always: bool = False

    def due(self, client_id: int, round_idx: int) -> bool:
        here = (client_id, round_idx) == (self.client_id, self.round_idx)
        return here and (self.always or not self.marker.exists())


@dataclass(frozen=True)
class FaultyClients(Clients):
    failure: Failure | None = None

    def make_trainer(self) -> LocalTrainer:
        assert self.failure is not None
        trainer = FaultyTrainer(self.model, self.algorithm, self.local, self.update)
        trainer.failure = self.failure
        return trainer


class FaultyTrainer(LocalTrainer):
    failure: Failure
    num_losses = 0

    def train(self, task: Any, *arguments: Any) -> Any:
        self.num_losses, self.task = 0, task
        return super().train(task, *arguments)

    def _loss(self, batch: Any, compared: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        loss, vsr_loss = super()._loss(batch, compared)
        self.num_losses += 1
        if self.num_losses == 2 and self.failure.due(self.task.client_id, self.task.round_idx):
            self.failure.marker.write_text(str(os.getpid()))
            if self.failure.how == "nan":
                return loss * torch.nan, vsr_loss
            HOW[self.failure.how]()
        return loss, vsr_loss


def _raise() -> None:
    raise OSError("a loose cable")


def _mistake() -> None:
    raise UserError("clip 7 is damaged")


def _hang() -> None:
    time.sleep(600)


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _eat_memory() -> None:
    held = []
    for _ in range(100):
        held.append(np.ones(2**25))  # 256 MiB
        time.sleep(0.05)
    time.sleep(60)


HOW: dict[str, Callable[[], None]] = {
    "raise": _raise,
    "mistake": _mistake,
    "hang": _hang,
    "die": _die,
    "eat_memory": _eat_memory,
}


@dataclass(frozen=True)
class FaultyExecutor:
    """Makes a `RayExecutor` of clients of which one fails."""

    failure: Failure

    def __call__(self, clients: Clients, *arguments: Any, **keywords: Any) -> RayExecutor:
        given = {field.name: getattr(clients, field.name) for field in fields(clients)}
        return RayExecutor(FaultyClients(**given, failure=self.failure), *arguments, **keywords)
