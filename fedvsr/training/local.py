"""Local training of one client: the only inner loop.

B clips, T frames, C channels, H x W pixels, values in [0, 1]. P shared parameters.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fedvsr import algorithms, models
from fedvsr.algorithms.base import KEPT_BY_TRAINER, LocalRound
from fedvsr.data.clips import Clip
from fedvsr.data.loader import Loader
from fedvsr.data.sampling import Draw, passes, read_batch
from fedvsr.determinism import scoped_torch
from fedvsr.energy import Meter
from fedvsr.errors import UserError
from fedvsr.layout import NOT_SHARED, Role
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Packed, Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import (
    FloatVector,
    all_finite,
    distance,
    join_tensors,
    load_params,
    split_rows,
    split_tensors,
    wipe,
)
from fedvsr.precision import products
from fedvsr.section import NamedSection
from fedvsr.seeding import derive_seed
from fedvsr.training.config import LocalConfig
from fedvsr.training.gradients import Frames, Gradients
from fedvsr.training.optimiser import (
    effective_steps,
    learning_rate,
    lipschitz,
    make_optimiser,
    moments,
    restore_moments,
)
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import layout_of
from fedvsr.training.updates import UNCHANGED, UpdateConfig, outgoing


@dataclass
class _Course:
    """What the steps of a round gave, in their order."""

    losses: list[float] = field(default_factory=list)
    vsr_losses: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    num_samples: int = 0
    gradient_norm: float = 0.0
    """L2 norm of the first finite gradient; 0 until there is one."""


class LocalTrainer:
    """Trains clients one at a time on one device. Nothing in it outlasts a task but its memory.

    Args:
        model: the network's section.
        algorithm: the algorithm's section.
        local: how to train.
        update: clipping, compression and rejection of the update.
        rest: first values of the parameters that are not shared, in their order; None: those that
            the network is built with.

    Raises:
        UserError: `local.slow_params` names no parameter, or see `layout_of`.
    """

    def __init__(
        self,
        model: ModelConfig,
        algorithm: NamedSection,
        local: LocalConfig,
        update: UpdateConfig = UNCHANGED,
        rest: FloatVector | None = None,
    ) -> None:
        self.spec = model_spec(model)
        self.local, self.update = local, update
        self.algorithm = algorithms.build(algorithm)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._stream: torch.cuda.Stream | None = None
        if self.device.type == "cuda":
            self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self.network = models.build_fresh(model).to(self.device).train()
        self.layout = layout_of(self.network, self.spec, self.algorithm.config, local)
        if rest is not None:
            load_params(self.layout.params(self.network, *NOT_SHARED), rest)
        for parameter in self.layout.params(self.network, "frozen"):
            parameter.requires_grad_(False)
        self._shared = self.layout.params(self.network, "shared")
        self._own = self.layout.params(self.network, "own")
        self._first_own = join_tensors(self._own)
        if local.compile:
            _compile(self.network)
        self.gradients = Gradients(self.network, model, self.algorithm, local, self.layout)
        self._learning: tuple[Role, ...] = ("shared", "own")
        self._slow = list[tuple[torch.nn.Parameter, Role]]()
        roles = zip(self.network.named_parameters(), self.layout.roles, strict=True)
        named = [(name, parameter, role) for (name, parameter), role in roles]
        for part in local.slow_params:
            matches = [(p, role) for name, p, role in named if part in name]
            if not matches:
                raise UserError(f"local.slow_params: {part!r} is in no parameter of {model.name}")
            self._slow += [(p, role) for p, role in matches if role != "frozen"]

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The context of all work on the device: its precision, and its stream."""
        # A graph cannot be recorded on the default stream.
        with products(self.local.precision), torch.cuda.stream(self._stream):
            yield

    def release(self) -> None:
        """Free the GPU memory that only training needs, for others on the same GPU."""
        self.gradients.release()

    def params(self) -> FloatVector:
        """A copy of the shared parameters (P,) as they are."""
        return join_tensors(self._shared)

    def load(self, params: FloatVector, own: FloatVector | None = None) -> None:
        """Load the shared parameters (P,), and those that stay with a client: their first values.

        Args:
            params: the shared ones.
            own: what the client keeps, once it has trained.
        """
        load_params(self._shared, params)
        load_params(self._own, self._first_own if own is None else own)

    def forget(self) -> None:
        """Wipe what the last client left: its parameters and gradients."""
        wipe([*self._shared, *self._own])
        self.gradients.forget()

    def train(
        self,
        task: ClientTask,
        shared: Vectors,
        state: Vectors,
        clips: Sequence[Clip],
        out: FloatVector | None = None,
    ) -> tuple[ClientReport, ClientUpdate]:
        """Train from the global parameters on the client's clips.

        Args:
            task: the work.
            shared: the server's vectors, those of `Algorithm.broadcast`; only read.
            state: vectors (P,) that the client remembers, empty in its first round; only read.
            clips: the client's own.
            out: memory (P,) to write the client's parameters to, reused from round to round: new
                pages cost as much time as filling them.

        Returns:
            What happened, and what the client sends and remembers.

        Raises:
            UserError: the loss or the update is not finite and `update.reject_nonfinite` is off.
        """
        started_at, started = time.time(), time.perf_counter()
        seed = derive_seed(task.seed, "torch")
        with (
            Meter(self.device) as meter,
            scoped_torch(seed, self.local.num_threads, self.local.deterministic),
            self.on_device(),
        ):
            report, update = self._train(task, shared, state, clips, out)
        train_s = time.perf_counter() - started
        return replace(report, started_at=started_at, train_s=train_s, **meter.taken()), update

    def _train(
        self,
        task: ClientTask,
        shared: Vectors,
        state: Vectors,
        clips: Sequence[Clip],
        out: FloatVector | None,
    ) -> tuple[ClientReport, ClientUpdate]:
        algorithm = self.algorithm
        begin = shared["params"]
        if algorithm.own_network and not algorithm.trains_beside:
            begin = state.get(algorithm.own_network, begin)
        self.load(begin, state.get("own"))
        self.gradients.begin(shared, state)
        corrects = algorithm.corrects_gradients or algorithm.corrects_steps
        hooks = self._local_round(shared, state, clips) if corrects else None
        if hooks:
            hooks = replace(hooks, round_idx=task.round_idx)
        waited_s = 0.0
        if hooks and algorithm.wants_first_gradient:
            waited_s = self._gather_first_gradient(task, clips, hooks)
        # A new one each round: the moments start from zero, unless the client remembers them.
        slow = [parameter for parameter, _ in self._slow]
        optimiser = make_optimiser(self.local, self._trained(), slow)
        if "moments" in state:
            restore_moments(optimiser, state["moments"])
        with self._loader(task, clips) as batches:
            course = self._descend(task, clips, batches, optimiser, hooks)
        waited_s += batches.wait_s
        update, norm, finite = self._make_update(task, course, optimiser, hooks, state, begin, out)
        if algorithm.trains_beside and finite:
            update, wait_s = self._train_beside(task, shared, state, clips, update)
            waited_s, finite = waited_s + wait_s, bool(update.upload)
        lr = fmean(course.rates)
        report = ClientReport(
            client_id=task.client_id,
            round_idx=task.round_idx,
            num_samples=course.num_samples,
            num_steps=len(course.losses),
            loss=fmean(course.losses),
            vsr_loss=fmean(course.vsr_losses),
            first_loss=course.losses[0],
            lr=lr,
            effective_steps=effective_steps(self.local, algorithm.config.mu, course.rates),
            lipschitz=lipschitz(self.local, lr, course.gradient_norm, norm),
            update_norm=norm,
            upload_bytes=sum(vector.nbytes for vector in update.upload.values()),
            state_bytes=sum(vector.nbytes for vector in update.state.values()),
            finite=finite,
            train_s=0.0,
            input_wait_s=waited_s,
            label_counts=Counter(c.label for c in clips) if algorithm.counts_labels else {},
        )
        return report, update

    def _train_beside(
        self,
        task: ClientTask,
        shared: Vectors,
        state: Vectors,
        clips: Sequence[Clip],
        update: ClientUpdate,
    ) -> tuple[ClientUpdate, float]:
        """Train the client's own network, on the batches that the shared one was trained on.

        Returns:
            The update with what the client remembers of it, and wall seconds of waiting for
            samples. The update is empty if its values are not finite.

        Raises:
            UserError: they are not finite, and `update.reject_nonfinite` is off.
        """
        name = self.algorithm.own_network
        assert name is not None
        self.load(state.get(name, shared["params"]))
        hooks = replace(self._local_round(shared, state, clips), beside=True)
        slow = [parameter for parameter, _ in self._slow]
        optimiser = make_optimiser(self.local, self._trained(), slow)
        seed = derive_seed(task.seed, "torch", "beside")
        with (
            scoped_torch(seed, self.local.num_threads, self.local.deterministic),
            self._loader(task, clips) as batches,
        ):
            course = self._descend(task, clips, batches, optimiser, hooks)
        own = join_tensors(self._shared)
        if not (math.isfinite(course.losses[-1]) and all_finite(own)):
            self._refuse(task, "personal network")
            return ClientUpdate({}, {}), batches.wait_s
        return ClientUpdate(update.upload, {**update.state, name: own}), batches.wait_s

    def _refuse(self, task: ClientTask, what: str) -> None:
        """Refuse values that are not finite, unless `update.reject_nonfinite` is on.

        Raises:
            UserError: it is off.
        """
        if not self.update.reject_nonfinite:
            raise UserError(
                f"the {what} of client {task.client_id} is not finite in round {task.round_idx}; "
                + _way_out(self.local)
            )

    def _descend(
        self,
        task: ClientTask,
        clips: Sequence[Clip],
        batches: Iterable[Frames],
        optimiser: torch.optim.Optimizer,
        hooks: LocalRound | None,
    ) -> _Course:
        """Take the steps of a round; `update.reject_nonfinite` ends them at a non-finite loss.

        Raises:
            UserError: a loss is not finite and `update.reject_nonfinite` is off.
        """
        algorithm, course = self.algorithm, _Course()
        num_steps = count_steps(self.local, clips)
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.local.precision == "fp16")
        for batch in batches:
            # This step's place in the whole training, as if every client trained in every round: a
            # schedule must not depend on which clients were drawn before.
            step = (task.round_idx - 1) * num_steps + len(course.losses)
            learning = algorithm.learning(len(course.losses), num_steps)
            self._thaw(step, learning)
            lr = learning_rate(self.local, step / (task.num_rounds * num_steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * group["factor"]
            corrected = hooks if "shared" in learning else None
            loss, vsr_loss = self._step(batch, optimiser, scaler, corrected, course)
            course.losses.append(loss)
            course.vsr_losses.append(vsr_loss)
            course.rates.append(lr)
            course.num_samples += len(batch[0])
            if not math.isfinite(loss):
                if self.update.reject_nonfinite:
                    break
                raise UserError(
                    f"the loss of client {task.client_id} is {loss} in round {task.round_idx}, "
                    f"step {len(course.losses)}; {_way_out(self.local)}"
                )
        return course

    def _step(
        self,
        batch: Frames,
        optimiser: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        hooks: LocalRound | None,
        course: _Course,
    ) -> tuple[float, float]:
        """Take one step; returns the local loss and the network's own part of it."""
        losses = self.gradients.compute(batch, scaler)
        if course.gradient_norm == 0:
            norm = _gradient_norm(self.network.parameters()) / scaler.get_scale()
            course.gradient_norm = norm if math.isfinite(norm) else 0.0
        added = 0.0
        if hooks:
            scaler.unscale_(optimiser)
            # A step that the scaler will skip must leave no trace in what the hooks sum up.
            if not scaler.is_enabled() or math.isfinite(_gradient_norm(self.network.parameters())):
                added = self.algorithm.correct_gradients(hooks, len(course.losses))
        with self._corrected_step(hooks):
            scaler.step(optimiser)
        scaler.update()
        # The only wait for the device, once all work of the step is queued.
        loss, vsr_loss = losses.tolist()
        return loss + added, vsr_loss

    @contextmanager
    def _corrected_step(self, hooks: LocalRound | None) -> Iterator[None]:
        """Let the algorithm correct the optimiser's step that is taken inside."""
        if hooks is None or not self.algorithm.corrects_steps:
            yield
            return
        before = [parameter.detach().clone() for parameter in hooks.params]
        yield
        with torch.no_grad():
            self.algorithm.correct_step(hooks, before)

    def _make_update(
        self,
        task: ClientTask,
        course: _Course,
        optimiser: torch.optim.Optimizer,
        hooks: LocalRound | None,
        state: Vectors,
        begin: FloatVector,
        out: FloatVector | None,
    ) -> tuple[ClientUpdate, float, bool]:
        """Make what the client sends and remembers; empty if any value is not finite.

        Returns:
            The update, the L2 norm of the parameters' change, and whether every value is finite.

        Raises:
            UserError: a value is not finite and `update.reject_nonfinite` is off.
        """
        extra, kept = self.algorithm.finish(hooks) if hooks else ({}, {})
        params = join_tensors(self._shared, out)
        norm = distance(params, begin)
        vectors = {"params": params, "own": join_tensors(self._own)} | _joined(extra)
        # A change of finite norm holds finite values only, so `params` needs no second look then.
        unchecked = [v for n, v in vectors.items() if n != "params" or not math.isfinite(norm)]
        if not math.isfinite(course.losses[-1]) or not all(map(all_finite, unchecked)):
            self._refuse(task, "update")
            return ClientUpdate({}, {}), norm, False
        upload: dict[str, FloatVector | Packed] = {n: vectors[n] for n in self.algorithm.upload}
        remembered = self._remembered(params, optimiser, _joined(kept))
        if self._own:
            remembered["own"] = vectors["own"]
        if self.update.active:
            upload["params"], residual = outgoing(params, begin, state.get("residual"), self.update)
            if residual is not None:
                remembered["residual"] = residual
        return ClientUpdate(upload, remembered), norm, True

    def _remembered(
        self, params: FloatVector, optimiser: torch.optim.Optimizer, kept: Vectors
    ) -> Vectors:
        """What the client remembers until it is drawn again, but for what compression left out."""
        remembered = dict(kept)
        if "params" in self.algorithm.client_state:
            remembered["params"] = params
        if "moments" in self.algorithm.client_state:
            remembered["moments"] = moments(optimiser)
        return remembered

    def _gather_first_gradient(
        self, task: ClientTask, clips: Sequence[Clip], hooks: LocalRound
    ) -> float:
        """Gather the mean gradient of the round's batches at the initial parameters: one more pass.

        Returns:
            Wall seconds of waiting for samples.
        """
        self._thaw((task.round_idx - 1) * hooks.num_steps)
        # Gradients add up in float32 even where the network computes in halves; fp16 scales them.
        scaler = torch.amp.GradScaler(self.device.type, enabled=self.local.precision == "fp16")
        gathered = hooks.sum("first_gradient")
        with self._loader(task, clips) as batches:
            for batch in batches:
                self.gradients.compute(batch, scaler, compare=False)
                norm = _gradient_norm(self.network.parameters()) if scaler.is_enabled() else 0.0
                if not math.isfinite(norm):
                    # Halve the scale, and leave this batch out.
                    scaler.update(scaler.get_scale() * scaler.get_backoff_factor())
                    continue
                for total, parameter in zip(gathered, hooks.params, strict=True):
                    if parameter.grad is not None:
                        total.add_(parameter.grad, alpha=1 / (scaler.get_scale() * hooks.num_steps))
        return batches.wait_s

    def _thaw(self, step: int, learning: tuple[Role, ...] = ("shared", "own")) -> None:
        """Let those parameters learn that step `step` of the whole training changes."""
        if learning != self._learning:
            self._learning = learning
            for role, params in (("shared", self._shared), ("own", self._own)):
                for parameter in params:
                    parameter.requires_grad_(role in learning)
        for parameter, role in self._slow:
            parameter.requires_grad_(role in learning and step >= self.local.freeze_steps)

    def _trained(self) -> list[torch.nn.Parameter]:
        """All parameters that are not frozen, in the module's order."""
        return self.layout.params(self.network, "shared", "own")

    def _local_round(self, shared: Vectors, state: Vectors, clips: Sequence[Clip]) -> LocalRound:
        def split(vectors: Vectors) -> dict[str, list[Tensor]]:
            rows = self.algorithm.cohort_state
            return {
                name: (split_rows if name in rows else split_tensors)(self._shared, vector)
                for name, vector in vectors.items()
            }

        samples = sum(clip.num_frames for clip in clips)
        return LocalRound(
            params=list(self._shared),
            shared=split(shared),
            state=split({name: v for name, v in state.items() if name not in KEPT_BY_TRAINER}),
            sums={},
            num_steps=count_steps(self.local, clips),
            steps_per_epoch=math.ceil(samples / self.local.batch_size),
        )

    def _loader(self, task: ClientTask, clips: Sequence[Clip]) -> Loader[list[Draw], Frames]:
        """The round's batches of uint8 frames; every call gives the same ones."""
        draws = passes(clips, derive_seed(task.seed, "samples"), self.local.batch_size)
        pin = self.device.type == "cuda"
        return Loader(
            partial(read_batch, shape=self.local.sample_shape, pin=pin),
            islice(draws, count_steps(self.local, clips)),
            self.local.num_workers,
        )


def _compile(network: torch.nn.Module) -> None:
    """Compile each kind of layer that the network repeats once.

    Compiling a whole clip's recurrence as one graph takes many minutes and runs no faster.
    """
    kinds: Any = network.compiled_layers
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    for layer in layers or [network]:
        layer.compile()


def count_steps(local: LocalConfig, clips: Sequence[Clip]) -> int:
    """Optimiser steps of a client that holds `clips`, in one round."""
    if local.steps is not None:
        return local.steps
    return local.epochs * math.ceil(sum(clip.num_frames for clip in clips) / local.batch_size)


def _way_out(local: LocalConfig) -> str:
    return (
        f"lower local.lr = {local.lr:g}, or leave such clients out by update.reject_nonfinite=true"
    )


def _joined(tensors: Mapping[str, Sequence[Tensor]]) -> Vectors:
    return {name: join_tensors(parts) for name, parts in tensors.items()}


def _gradient_norm(params: Iterable[Tensor]) -> float:
    """L2 norm of all gradients; not finite if one of them is not."""
    norms = torch._foreach_norm([g for p in params if (g := p.grad) is not None])
    return float(torch.linalg.vector_norm(torch.stack(norms)).item())
