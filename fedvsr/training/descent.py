"""The optimiser's steps of a client's round: the only inner loop."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from fedvsr.algorithms.base import FedAvg, LocalRound
from fedvsr.errors import UserError
from fedvsr.messages import ClientTask
from fedvsr.training.config import LocalConfig
from fedvsr.training.gradients import Frames, Gradients
from fedvsr.training.optimiser import learning_rate
from fedvsr.training.parameters import Parameters


@dataclass
class Course:
    """What the steps of a round gave, in their order."""

    losses: list[float] = field(default_factory=list)
    vsr_losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    num_samples: int = 0
    gradient_norm: float = 0.0
    """L2 norm of the first finite gradient; 0 until there is one."""


class Descent:
    """Takes the steps of a client's rounds.

    Args:
        network: the network that learns, on the device that computes.
        parameters: its parameters.
        gradients: computes them.
        algorithm: what changes a step.
        local: how to train.
        reject_nonfinite: whether a loss that is not finite ends the round and not the run.
    """

    def __init__(
        self,
        network: nn.Module,
        parameters: Parameters,
        gradients: Gradients,
        algorithm: FedAvg,
        local: LocalConfig,
        reject_nonfinite: bool,
    ) -> None:
        self._network, self._parameters, self._gradients = network, parameters, gradients
        self._algorithm, self._local = algorithm, local
        self._reject_nonfinite = reject_nonfinite

    def run(
        self,
        task: ClientTask,
        num_steps: int,
        batches: Iterable[Frames],
        optimiser: torch.optim.Optimizer,
        hooks: LocalRound | None,
    ) -> Course:
        """Take the steps of a round.

        Args:
            task: the client's work.
            num_steps: steps of a round.
            batches: a batch for each.
            optimiser: takes them.
            hooks: what the algorithm's hooks see; None: it has none.

        Raises:
            UserError: a loss is not finite, and `reject_nonfinite` is off.
        """
        course = Course()
        scaler = self._scaler()
        for batch in batches:
            # This step's place in the whole training, as if every client trained in every round: a
            # schedule must not depend on which clients were drawn before.
            step = (task.round_idx - 1) * num_steps + len(course.losses)
            learning = self._algorithm.learning(len(course.losses), num_steps)
            self._parameters.thaw(step, learning)
            lr = learning_rate(self._local, step / (task.num_rounds * num_steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * group["factor"]
            corrected = hooks if "shared" in learning else None
            loss, vsr_loss = self._step(batch, optimiser, scaler, corrected, course)
            course.losses.append(loss)
            course.vsr_losses.append(vsr_loss)
            course.rates.append(lr)
            course.num_samples += len(batch[0])
            if not math.isfinite(loss):
                if self._reject_nonfinite:
                    break
                raise UserError(
                    f"the loss of client {task.client_id} is {loss} in round {task.round_idx}, "
                    f"step {len(course.losses)}; {way_out(self._local)}"
                )
        return course

    def gather_first_gradient(
        self, task: ClientTask, batches: Iterable[Frames], hooks: LocalRound
    ) -> None:
        """Gather the mean gradient of the round's batches at the initial parameters: one more pass.

        It becomes the sum `first_gradient` of `hooks`.
        """
        self._parameters.thaw((task.round_idx - 1) * hooks.num_steps)
        # Gradients add up in float32 even where the network computes in halves; fp16 scales them.
        scaler, gathered = self._scaler(), hooks.sum("first_gradient")
        for batch in batches:
            self._gradients.compute(batch, scaler, compare=False)
            if scaler.is_enabled() and not math.isfinite(self._gradient_norm()):
                # Halve the scale, and leave this batch out.
                scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
                continue
            for total, parameter in zip(gathered, hooks.params, strict=True):
                if parameter.grad is not None:
                    total.add_(parameter.grad, alpha=1 / (scaler.get_scale() * hooks.num_steps))

    def _step(
        self,
        batch: Frames,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        hooks: LocalRound | None,
        course: Course,
    ) -> tuple[float, float]:
        """Take one step; returns the local loss and the network's own part of it."""
        losses = self._gradients.compute(batch, scaler)
        if course.gradient_norm == 0:
            norm = self._gradient_norm() / scaler.get_scale()
            course.gradient_norm = norm if math.isfinite(norm) else 0.0
        added = 0.0
        if hooks:
            scaler.unscale_(optimiser)
            # A step that the scaler will skip must leave no trace in what the hooks sum up.
            if not scaler.is_enabled() or math.isfinite(self._gradient_norm()):
                added = self._algorithm.correct_gradients(hooks, len(course.losses))
        with self._corrected_step(hooks):
            scaler.step(optimiser)
        scaler.update()
        # The only wait for the device, once all work of the step is queued.
        loss, vsr_loss = losses.tolist()
        return loss + added, vsr_loss

    @contextmanager
    def _corrected_step(self, hooks: LocalRound | None) -> Iterator[None]:
        """Let the algorithm correct the optimiser's step that is taken inside."""
        if hooks is None or not self._algorithm.corrects_steps:
            yield
            return
        before = [parameter.detach().clone() for parameter in hooks.params]
        yield
        with torch.no_grad():
            self._algorithm.correct_step(hooks, before)

    def _scaler(self) -> torch.amp.GradScaler:
        device = next(self._network.parameters()).device.type
        return torch.amp.GradScaler(device, enabled=self._local.precision == "fp16")

    def _gradient_norm(self) -> float:
        """L2 norm of all gradients; not finite if one of them is not."""
        found: list[Tensor] = [g for p in self._network.parameters() if (g := p.grad) is not None]
        norms = torch._foreach_norm(found)
        return float(torch.linalg.vector_norm(torch.stack(norms)).item())


def way_out(local: LocalConfig) -> str:
    """What a user can do about values that are not finite."""
    return (
        f"lower local.lr = {local.lr:g}, or leave such clients out by update.reject_nonfinite=true"
    )
