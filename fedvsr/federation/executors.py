"""The executor contract, and its reference: clients trained one after another in this process."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from fedvsr.data.clips import Clip
from fedvsr.federation.client_states import ClientStates
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.models._spec import ModelConfig
from fedvsr.section import NamedSection
from fedvsr.training.local import LocalConfig, LocalTrainer, count_steps
from fedvsr.training.updates import UNCHANGED, UpdateConfig


@dataclass(frozen=True)
class ClientOutcome:
    """A finished task. The parameters stay where they are until they are fetched."""

    report: ClientReport
    fetch: Callable[[], ClientUpdate]
    """Gives what the client sends and remembers, perhaps read-only."""
    attempts: int = 1
    """Times the task was started: more than 1 where a client's process died."""


class Executor(Protocol):
    """Runs a round's clients. Every executor gives the same bits for the same tasks."""

    name: str

    def run_round(
        self, tasks: Sequence[ClientTask], shared: Vectors, states: ClientStates
    ) -> Iterator[ClientOutcome]:
        """Train every task's client; outcomes as they finish.

        Args:
            tasks: one a client.
            shared: what the server sends to each, `params` and more.
            states: what the clients remember; only read.
        """
        ...

    def close(self) -> None:
        """Give back what the executor holds."""
        ...


@dataclass(frozen=True)
class Clients:
    """All that is needed to train any client: the shared settings and each client's own clips."""

    model: ModelConfig
    algorithm: NamedSection
    local: LocalConfig
    clips: Sequence[tuple[Clip, ...]]
    """By client id."""
    update: UpdateConfig = UNCHANGED

    def pooled(self, clients_per_round: int) -> Clients:
        """One client with the clips of all, and with as many steps as a cohort of mean clients."""
        each = [count_steps(self.local, clips) for clips in self.clips]
        steps = round(clients_per_round * math.fsum(each) / len(each))
        return replace(
            self,
            local=self.local.model_copy(update={"steps": steps}),
            clips=(tuple(clip for clips in self.clips for clip in clips),),
        )

    def make_trainer(self) -> LocalTrainer:
        """A trainer with a network of its own."""
        return LocalTrainer(self.model, self.algorithm, self.local, self.update)


class SerialExecutor:
    """One client at a time in this process: the reference that Ray must equal bit for bit."""

    name = "serial"

    def __init__(self, clients: Clients) -> None:
        self._clients = clients
        self._trainer = clients.make_trainer()

    def run_round(
        self, tasks: Sequence[ClientTask], shared: Vectors, states: ClientStates
    ) -> Iterator[ClientOutcome]:
        """Train in the order of `tasks`."""
        for task in tasks:
            clips, state = self._clients.clips[task.client_id], states.get(task.client_id)
            report, update = self._trainer.train(task, shared, state, clips)
            yield ClientOutcome(report, fetch=partial(_same, update))

    def close(self) -> None:
        """Nothing is held."""


def _same(update: ClientUpdate) -> ClientUpdate:
    return update
