"""Local training of one client: from the global parameters to what it sends and remembers.

B clips, T frames, C channels, H x W pixels, values in [0, 1]. P shared parameters.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
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
from fedvsr.heap import return_freed
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Packed, Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import (
    FloatVector,
    all_finite,
    distance,
    join_tensors,
    split_rows,
    split_tensors,
)
from fedvsr.precision import products
from fedvsr.section import NamedSection
from fedvsr.seeding import derive_seed
from fedvsr.training.config import LocalConfig
from fedvsr.training.descent import Course, Descent, way_out
from fedvsr.training.gradients import Frames, Gradients
from fedvsr.training.optimiser import (
    effective_steps,
    lipschitz,
    make_optimiser,
    moments,
    restore_moments,
)
from fedvsr.training.parameters import Parameters
from fedvsr.training.requirements import model_spec
from fedvsr.training.roles import layout_of
from fedvsr.training.updates import UNCHANGED, UpdateConfig, outgoing


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
        self.parameters = Parameters(self.network, self.layout, local, rest, model.name)
        if local.compile:
            _compile(self.network)
        self.gradients = Gradients(self.network, model, self.algorithm, local, self.layout)
        self.descent = Descent(
            self.network,
            self.parameters,
            self.gradients,
            self.algorithm,
            local,
            update.reject_nonfinite,
        )

    @contextmanager
    def on_device(self) -> Iterator[None]:
        """The context of all work on the device: its precision, and its stream."""
        # A graph cannot be recorded on the default stream.
        with products(self.local.precision), torch.cuda.stream(self._stream):
            yield

    def release(self) -> None:
        """Free the memory that only training needs, for others on the same machine."""
        self.gradients.release()
        return_freed()

    def forget(self) -> None:
        """Wipe what the last client left: its parameters and gradients."""
        self.parameters.wipe()
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
        self.parameters.load(begin, state.get("own"))
        self.gradients.begin(shared, state)
        corrects = algorithm.corrects_gradients or algorithm.corrects_steps
        hooks = self._local_round(task, shared, state, clips) if corrects else None
        waited_s = 0.0
        if hooks and algorithm.wants_first_gradient:
            with self._loader(task, clips) as batches:
                self.descent.gather_first_gradient(task, batches, hooks)
            waited_s = batches.wait_s
        optimiser = self._optimiser()
        if "moments" in state:
            restore_moments(optimiser, state["moments"])
        num_steps = count_steps(self.local, clips)
        with self._loader(task, clips) as batches:
            course = self.descent.run(task, num_steps, batches, optimiser, hooks)
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
            label_counts=_label_counts(clips) if algorithm.counts_labels else {},
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
        self.parameters.load(state.get(name, shared["params"]))
        hooks = replace(self._local_round(task, shared, state, clips), beside=True)
        num_steps, optimiser = count_steps(self.local, clips), self._optimiser()
        seed = derive_seed(task.seed, "torch", "beside")
        with (
            scoped_torch(seed, self.local.num_threads, self.local.deterministic),
            self._loader(task, clips) as batches,
        ):
            course = self.descent.run(task, num_steps, batches, optimiser, hooks)
        own = self.parameters.values()
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
                + way_out(self.local)
            )

    def _make_update(
        self,
        task: ClientTask,
        course: Course,
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
        params = join_tensors(self.parameters.shared, out)
        norm = distance(params, begin)
        own = join_tensors(self.parameters.own)
        vectors = {"params": params, "own": own} | _joined(extra)
        # A change of finite norm holds finite values only, so `params` needs no second look then.
        unchecked = [v for n, v in vectors.items() if n != "params" or not math.isfinite(norm)]
        if not math.isfinite(course.losses[-1]) or not all(map(all_finite, unchecked)):
            self._refuse(task, "update")
            return ClientUpdate({}, {}), norm, False
        upload: dict[str, FloatVector | Packed] = {n: vectors[n] for n in self.algorithm.upload}
        remembered = self._remembered(params, optimiser, _joined(kept))
        if own.size:
            remembered["own"] = own
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

    def _optimiser(self) -> torch.optim.Optimizer:
        """A new one: the moments start from zero each round, unless the client remembers them."""
        return make_optimiser(self.local, self.parameters.trained, self.parameters.slow)

    def _local_round(
        self, task: ClientTask, shared: Vectors, state: Vectors, clips: Sequence[Clip]
    ) -> LocalRound:
        params = self.parameters.shared

        def split(vectors: Vectors) -> dict[str, list[Tensor]]:
            rows = self.algorithm.cohort_state
            return {
                name: (split_rows if name in rows else split_tensors)(params, vector)
                for name, vector in vectors.items()
            }

        samples = sum(clip.num_frames for clip in clips)
        return LocalRound(
            params=list(params),
            shared=split(shared),
            state=split({name: v for name, v in state.items() if name not in KEPT_BY_TRAINER}),
            sums={},
            num_steps=count_steps(self.local, clips),
            steps_per_epoch=math.ceil(samples / self.local.batch_size),
            round_idx=task.round_idx,
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


def _label_counts(clips: Sequence[Clip]) -> dict[str, int]:
    # Not a `Counter`, of which `dataclasses.asdict` makes counts of pairs.
    return dict(Counter(clip.label for clip in clips))


def _joined(tensors: Mapping[str, Sequence[Tensor]]) -> Vectors:
    return {name: join_tensors(parts) for name, parts in tensors.items()}
