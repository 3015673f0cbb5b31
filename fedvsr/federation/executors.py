"""The executor contract, and its reference: clients trained one after another in this process."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from fedvsr.data.clips import Clip, Frames
from fedvsr.errors import UserError
from fedvsr.federation.client_states import ClientStates
from fedvsr.inference.evaluate import ClipScore, Evaluator
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import FloatVector
from fedvsr.section import NamedSection
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer, count_steps
from fedvsr.training.updates import UNCHANGED, UpdateConfig

FaultKind = Literal[
    "died",
    "node_lost",
    "out_of_memory",
    "timeout",
    "raised",
    "not_finite",
    "driver",
    "checkpoint",
]


@dataclass(frozen=True)
class ClientOutcome:
    """How a client's task went."""

    report: ClientReport
    attempts: int = 1
    """Starts of the task; more than 1 if it failed before."""
    node: str | None = None
    """Ray node that trained it; None without Ray."""
    slot: int | None = None
    """Slot that it took; None without Ray."""


@dataclass(frozen=True)
class TrainedClient:
    """A finished task, with what the client sends and remembers."""

    outcome: ClientOutcome
    update: ClientUpdate
    """Its vectors may be read-only views of shared memory."""


@dataclass(frozen=True)
class Fault:
    """A failure that a run met."""

    round_idx: int
    client_id: int | None
    """None for the driver's own."""
    kind: FaultKind
    message: str
    """One line."""
    attempt: int = 1
    final: bool = False
    """The task is given up; else it is started again."""
    lost_s: float | None = None
    node: str | None = None
    traceback: str | None = None
    error: Exception | None = None
    """What to raise where the run cannot do without the task."""


class Scorer(Protocol):
    """Scores parameter vectors (P,) on the held-out clips, perhaps beside other work."""

    device_name: str

    def score(self, params: FloatVector) -> Pending:
        """Begin to score; the result waits in what is returned."""
        ...

    def take_faults(self) -> list[str]:
        """What went wrong since this was asked last, and was mended."""
        ...

    def pictures(self, params: FloatVector, clip: Clip, frame_idx: int) -> dict[str, Frames]:
        """See `Evaluator.pictures`."""
        ...


class Pending(Protocol):
    """Scores that are being made."""

    def ready(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> tuple[list[ClipScore], float]:
        """The scores and the wall seconds they took; waits for them."""
        ...


class Executor(Protocol):
    """Runs a round's clients. Every executor gives the same bits for the same tasks."""

    name: str

    def run_round(
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        """Train every task's client; outcomes as they finish, faults as they happen.

        Every task ends in an outcome or in a fault that is final.

        Args:
            tasks: one a client.
            shared: what the server sends to each, `params` and more.
            states: what the clients remember; only read.
            upcoming: clients of the next round, as far as known.
        """
        ...

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        """Make the run's scorer."""
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
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        """Train in the order of `tasks`. What fails here would fail again, so it fails for good."""
        for task in tasks:
            clips, state = self._clients.clips[task.client_id], states.get(task.client_id)
            started = time.perf_counter()
            try:
                report, update = self._trainer.train(task, shared, state, clips)
            except Exception as error:
                yield Fault(
                    task.round_idx,
                    task.client_id,
                    "raised",
                    first_line(error),
                    final=True,
                    lost_s=time.perf_counter() - started,
                    traceback="".join(traceback.format_exception(error)),
                    error=error,
                )
            else:
                yield TrainedClient(ClientOutcome(report), update)

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        """Scores are made at once, here."""
        return _SerialScorer(make())

    def close(self) -> None:
        """Nothing is held."""


class _SerialScorer:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.device_name = evaluator.device_name
        self.pictures = evaluator.pictures

    def score(self, params: FloatVector) -> Pending:
        return _Scored(*timed_score(self._evaluator, params))

    def take_faults(self) -> list[str]:
        return []


@dataclass(frozen=True)
class _Scored:
    scores: list[ClipScore]
    wall_s: float

    def ready(self) -> bool:
        return True

    def result(self) -> tuple[list[ClipScore], float]:
        return self.scores, self.wall_s


def timed_score(evaluator: Evaluator, params: FloatVector) -> tuple[list[ClipScore], float]:
    """The scores, and the wall seconds they took."""
    started = time.perf_counter()
    scores = evaluator.score(params)
    return scores, time.perf_counter() - started


def first_line(error: BaseException) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return lines[0] if isinstance(error, UserError) else ": ".join([name, *lines[:1]])
