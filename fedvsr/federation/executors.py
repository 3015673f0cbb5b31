"""The executor contract, and its reference implementation, which trains one client after another.

P is the number of parameters.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt

from fedvsr.algorithms.base import Aggregated
from fedvsr.data.clips import Clip
from fedvsr.errors import UserError
from fedvsr.federation.aggregation import RoundSum, aggregate_here
from fedvsr.federation.masking import change_of, sum_here
from fedvsr.messages import ClientReport, ClientTask, Update, Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import FloatVector
from fedvsr.section import NamedSection
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer, count_steps
from fedvsr.training.updates import UNCHANGED, UpdateConfig

if TYPE_CHECKING:
    # A client's process imports this module, and needs neither to score nor to keep states.
    from fedvsr.federation.client_states import ClientStates
    from fedvsr.inference.evaluate import Evaluator
    from fedvsr.inference.scores import Scored

FaultKind = Literal[
    "died",
    "node_lost",
    "out_of_memory",
    "timeout",
    "raised",
    "not_finite",
    "alone",
    "driver",
    "checkpoint",
    "table",
    "logger",
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
    upload_failed: bool = False
    """Whether the update was lost on its way, by `federation.upload_failure_probability`."""

    @property
    def accepted(self) -> bool:
        """Whether the update is finite and has arrived."""
        return self.report.finite and not self.upload_failed


@dataclass(frozen=True)
class TrainedClient:
    """A finished task, with what the client sends and remembers."""

    outcome: ClientOutcome
    update: Update
    """Its vectors may be read-only views of shared memory."""


@dataclass(frozen=True)
class Fault:
    """A failure during a run, recovered or not."""

    round_idx: int
    client_id: int | None
    """None for a failure of the driver or the evaluator."""
    kind: FaultKind
    message: str
    """One line."""
    attempt: int = 1
    """Which start of the task failed, from 1."""
    final: bool = False
    """Whether the task is given up; otherwise it is retried."""
    lost_s: float | None = None
    """Wall seconds of work that are lost."""
    node: str | None = None
    """Ray node; None if unknown."""
    traceback: str | None = None
    error: Exception | None = None
    """The exception to raise if the run cannot do without this task."""


@dataclass(frozen=True)
class Delay:
    """What holds up a run that has not started yet."""

    what: str
    limit_s: float
    """Seconds after which it ends at the latest."""

    def __str__(self) -> str:
        return f"{self.what}; {self.limit_s:g} s at most"


class Scorer(Protocol):
    """Scores parameter vectors (P,) on the held-out clips, perhaps while clients train."""

    device_name: str

    def score(self, params: FloatVector, pictures: bool = True) -> Pending:
        """Start to score, and return a handle to the result; see `Evaluator.score`."""
        ...

    def take_faults(self) -> list[tuple[FaultKind, str]]:
        """Recovered failures since the last call, a line each."""
        ...


class Pending(Protocol):
    """A handle to scores that are being computed."""

    def ready(self) -> bool:
        """Whether `result` returns at once."""
        ...

    def result(self) -> Scored:
        """Wait for the scores."""
        ...


class Executor(Protocol):
    """Trains a round's clients. Every executor gives the same bits for the same tasks."""

    name: str

    def run_round(
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        """Train every task's client. Yields clients as they finish and faults as they happen.

        Every task ends in a trained client or in a final fault.

        Args:
            tasks: a task per client.
            shared: the server's vectors (P,) for all clients: `params`, and the algorithm's.
            states: what the clients remember; only read.
            upcoming: clients of the next round, as far as they are known.
        """
        ...

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        """Combine the updates of the last round. Yields faults as they happen, then the aggregate.

        A client's fault says that its update is lost; then there is no aggregate. If the fault is
        not final, the client's task gives the same update again.
        """
        ...

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        """Make the run's scorer."""
        ...

    def close(self) -> None:
        """Release what the executor holds."""
        ...


@dataclass(frozen=True)
class Clients:
    """What is needed to train any client: the shared settings, and each client's own clips."""

    model: ModelConfig
    algorithm: NamedSection
    local: LocalConfig
    clips: Sequence[tuple[Clip, ...]]
    """By client id."""
    update: UpdateConfig = UNCHANGED
    rest: FloatVector | None = None
    """First values of the parameters that are not shared; None if all are."""

    @property
    def sizes(self) -> npt.NDArray[np.int64]:
        """Frames of each client's clips, by client id."""
        # A client's process imports this module, and needs no Arrow.
        from fedvsr.data.client_clips import ClientClips

        return ClientClips.of(self.clips).sizes

    def pooled(self, clients_per_round: int) -> Clients:
        """A single client with all clips, which takes as many steps as a cohort of mean clients."""
        each = [count_steps(self.local, clips) for clips in self.clips]
        steps = round(clients_per_round * math.fsum(each) / len(each))
        return replace(
            self,
            local=self.local.model_copy(update={"steps": steps}),
            clips=(tuple(clip for clips in self.clips for clip in clips),),
        )

    def make_trainer(self) -> LocalTrainer:
        """A trainer with its own network."""
        return LocalTrainer(self.model, self.algorithm, self.local, self.update, self.rest)


class SerialExecutor:
    """Trains one client at a time in this process. Ray must equal it bit for bit."""

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
        """Train in the order of `tasks`. A failure is final: the same work would fail again."""
        for task in tasks:
            clips, state = self._clients.clips[task.client_id], states.get(task.client_id)
            started = time.perf_counter()
            try:
                report, update = self._trainer.train(task, shared, state, clips)
                self._require_range(task, update, shared)
            except Exception as error:
                # Whatever the training of a client raises is that client's fault, with its cause.
                yield Fault(
                    task.round_idx,
                    task.client_id,
                    "raised",
                    first_line(error),
                    final=True,
                    lost_s=time.perf_counter() - started,
                    traceback="".join(traceback.format_exception(error)),
                    error=given_up(task, error),
                )
            else:
                yield TrainedClient(ClientOutcome(report), update)
        # The scorer may compute on the same GPU.
        self._trainer.release()

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        """Combine them in this process, which has them."""
        if self._clients.update.secure_sum:
            yield sum_here(work, self._clients.update)
        else:
            yield aggregate_here(work)

    def _require_range(self, task: ClientTask, update: Update, shared: Vectors) -> None:
        """Check that an update fits into a secure sum, as a client's process does."""
        params = update.upload.get("params")
        if self._clients.update.secure_sum and isinstance(params, np.ndarray):
            ids = task.client_id, task.round_idx
            change_of(params, shared["params"], self._clients.update, *ids)

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        """Make a scorer that computes at once, in this process."""
        return _SerialScorer(make())

    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class _SerialScorer:
    def __init__(self, evaluator: Evaluator) -> None:
        self._evaluator = evaluator
        self.device_name = evaluator.device_name

    def score(self, params: FloatVector, pictures: bool = True) -> Pending:
        return _Done(self._evaluator.score(params, pictures))

    def take_faults(self) -> list[tuple[FaultKind, str]]:
        return []


@dataclass(frozen=True)
class _Done:
    scored: Scored

    def ready(self) -> bool:
        return True

    def result(self) -> Scored:
        return self.scored


def first_line(error: BaseException) -> str:
    """An exception as one line."""
    lines = str(error).strip().splitlines()
    name = type(error).__name__
    return lines[0] if isinstance(error, UserError) else ": ".join([name, *lines[:1]])


def given_up(task: ClientTask, error: Exception, attempts: int = 1) -> UserError:
    """What ends the run if it cannot do without a client that failed for good."""
    if isinstance(error, UserError):
        return error
    times = f", in each of {attempts} attempts" if attempts > 1 else ""
    failure = UserError(
        f"client {task.client_id} failed in round {task.round_idx}{times}: {first_line(error)}; "
        "faults.parquet of the run has the traceback; mend the cause, then --resume"
    )
    failure.__cause__ = error
    return failure
