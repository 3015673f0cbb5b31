"""Local training of one client: the only inner loop. B clips, T frames, values in [0, 1]."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import count, islice
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from torch import Tensor

from fedvsr import algorithms, models
from fedvsr.algorithms._base import Batch, LocalRound
from fedvsr.data.clips import Clip
from fedvsr.data.sampling import epoch
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.losses import charbonnier
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.models._spec import ModelConfig, ModelSpec
from fedvsr.params import distance, flatten, join_tensors, load_flat, split_tensors
from fedvsr.section import NamedSection, Section
from fedvsr.seeding import derive_seed, generator
from fedvsr.training.precision import Precision, autocast

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class LocalConfig(Section):
    """Local training of a client in a round. A key left out is what the network's recipe says."""

    epochs: int = Field(1, ge=1, le=1000, description="Passes over the client's clips per round.")
    steps: int | None = Field(
        None, ge=1, description="Optimiser steps per round, however many passes; replaces epochs."
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Samples a step.")
    num_frames: int = Field(6, ge=1, le=1000, description="Consecutive frames of a sample.")
    crop: int = Field(256, ge=8, le=4096, description="Ground-truth crop in pixels, square.")
    augment: bool = Field(True, description="Flip and transpose samples at random.")
    mirror: bool = Field(
        False, description="Follow each sample by itself in reverse: twice num_frames frames."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="The optimiser.")
    lr: float = Field(4e-4, gt=0, le=1, description="Learning rate.")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.99), description="Adam moment decay rates.")
    momentum: float = Field(0.0, ge=0, lt=1, description="Momentum of sgd.")
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="Course of the learning rate over all rounds: cosine ends at min_lr.",
    )
    min_lr: float = Field(1e-7, ge=0, le=1, description="Learning rate that cosine ends at.")
    slow_params: tuple[str, ...] = Field(
        (), description="Parts of names of parameters that learn more slowly, e.g. [spynet]."
    )
    slow_factor: float = Field(1.0, gt=0, le=1, description="Their learning rate, as part of lr.")
    freeze_steps: int = Field(
        0, ge=0, description="Local steps, counted over all rounds, in which they stay as they are."
    )
    precision: Precision = Field(
        "fp32", description="Autocast of the network; fp16 scales the loss."
    )
    compile: bool = Field(False, description="Compile the network's layers (torch.compile).")
    num_threads: int = Field(
        1, ge=1, le=256, description="CPU threads of a client; float sums depend on it."
    )


class LocalTrainer:
    """Trains clients one at a time on one device; holds nothing that outlasts a task.

    Raises:
        UserError: `local.slow_params` names no parameter.
    """

    def __init__(self, model: ModelConfig, algorithm: NamedSection, local: LocalConfig) -> None:
        self.spec = model_spec(model)
        self.local = local
        self.algorithm = algorithms.build(algorithm)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = models.build_fresh(model).to(self.device).train()
        if local.compile:
            _compile(self.network)
        self._slow = list[torch.nn.Parameter]()
        for part in local.slow_params:
            found = [p for name, p in self.network.named_parameters() if part in name]
            if not found:
                raise UserError(f"local.slow_params: {part!r} is in no parameter of {model.name}")
            self._slow += found

    def train(
        self, task: ClientTask, shared: Vectors, state: Vectors, clips: Sequence[Clip]
    ) -> tuple[ClientReport, ClientUpdate]:
        """Train from the global parameters on the client's clips.

        Args:
            task: the work.
            shared: what the server sends, `Algorithm.broadcast`; only read.
            state: what the client remembers, empty in its first round; only read.
            clips: the client's own.

        Returns:
            What happened, and what the client sends and remembers.

        Raises:
            UserError: the loss is not finite.
        """
        started = time.perf_counter()
        with scoped_torch(derive_seed(task.seed, "torch"), self.local.num_threads):
            return self._train(task, shared, state, clips, started)

    def _train(
        self,
        task: ClientTask,
        shared: Vectors,
        state: Vectors,
        clips: Sequence[Clip],
        started: float,
    ) -> tuple[ClientReport, ClientUpdate]:
        load_flat(self.network, shared["params"])
        local, algorithm = self.local, self.algorithm
        hooks = self._local_round(shared, state, clips) if algorithm.corrects_gradients else None
        # Made anew each round, as clients keep nothing: the moments start from zero.
        optimiser = self._optimiser()
        scaler = torch.amp.GradScaler(self.device.type, enabled=local.precision == "fp16")
        num_steps = self._num_steps(clips)
        losses, vsr_losses, rates, num_samples = list[float](), list[float](), list[float](), 0
        for lq_BTCHW, gt_BTCHW in self._batches(task, clips):
            # Where in the whole training this step stands, as if every client trained in every
            # round: a schedule must not depend on who was drawn before.
            step = (task.round_idx - 1) * num_steps + len(losses)
            for parameter in self._slow:
                parameter.requires_grad_(step >= local.freeze_steps)
            lr = learning_rate(local, step / (task.num_rounds * num_steps))
            for group in optimiser.param_groups:
                group["lr"] = lr * group["factor"]
            with autocast(self.device, local.precision):
                sr_BTCHW = self.network(lq_BTCHW)
            sr_BTCHW = sr_BTCHW.float()
            vsr_loss = charbonnier(sr_BTCHW, gt_BTCHW, self.spec.charbonnier_eps)
            loss = algorithm.local_loss(Batch(vsr_loss, sr_BTCHW, gt_BTCHW))
            optimiser.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            added = 0.0
            if hooks:
                scaler.unscale_(optimiser)
                # A step that the scaler will skip must leave no trace in what hooks gather.
                if not scaler.is_enabled() or _finite(hooks.params):
                    added = algorithm.correct_gradients(hooks, len(losses))
            scaler.step(optimiser)
            scaler.update()
            losses.append(loss.item() + added)
            rates.append(lr)
            vsr_losses.append(vsr_loss.item())
            num_samples += len(lq_BTCHW)
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss of client {task.client_id} is {losses[-1]} in round "
                    f"{task.round_idx}, step {len(losses)}; lower local.lr = {local.lr:g}"
                )
        extra, kept = algorithm.finish(hooks) if hooks else ({}, {})
        params = flatten(self.network)
        upload = {"params": params} | self._joined(extra)
        rate = math.fsum(rates) / len(rates)
        report = ClientReport(
            client_id=task.client_id,
            round_idx=task.round_idx,
            num_samples=num_samples,
            num_steps=len(losses),
            loss=math.fsum(losses) / len(losses),
            vsr_loss=math.fsum(vsr_losses) / len(vsr_losses),
            first_loss=losses[0],
            lr=rate,
            effective_steps=effective_steps(local, algorithm.config.mu, rates),
            update_norm=distance(params, shared["params"]),
            upload_bytes=sum(vector.nbytes for vector in upload.values()),
            train_s=time.perf_counter() - started,
        )
        return report, ClientUpdate(upload, self._joined(kept))

    def _local_round(self, shared: Vectors, state: Vectors, clips: Sequence[Clip]) -> LocalRound:
        split = partial(split_tensors, self.network)
        samples = sum(clip.num_frames for clip in clips)
        return LocalRound(
            params=list(self.network.parameters()),
            shared={name: split(vector) for name, vector in shared.items()},
            state={name: split(vector) for name, vector in state.items()},
            sums={},
            num_steps=self._num_steps(clips),
            steps_per_epoch=math.ceil(samples / self.local.batch_size),
        )

    def _joined(self, tensors: Mapping[str, Sequence[Tensor]]) -> Vectors:
        return {name: join_tensors(self.network, parts) for name, parts in tensors.items()}

    def _optimiser(self) -> torch.optim.Optimizer:
        local, slow = self.local, {id(parameter) for parameter in self._slow}
        usual = [p for p in self.network.parameters() if id(p) not in slow]
        groups: list[dict[str, Any]] = [{"params": usual, "factor": 1.0}]
        if self._slow:
            groups.append({"params": self._slow, "factor": local.slow_factor})
        if local.optimizer == "sgd":
            return torch.optim.SGD(
                groups, lr=local.lr, momentum=local.momentum, weight_decay=local.weight_decay
            )
        kind = torch.optim.Adam if local.optimizer == "adam" else torch.optim.AdamW
        return kind(groups, lr=local.lr, betas=local.betas, weight_decay=local.weight_decay)

    def _num_steps(self, clips: Sequence[Clip]) -> int:
        local = self.local
        if local.steps is not None:
            return local.steps
        return local.epochs * math.ceil(sum(c.num_frames for c in clips) / local.batch_size)

    def _batches(self, task: ClientTask, clips: Sequence[Clip]) -> Iterator[tuple[Tensor, Tensor]]:
        local, rng = self.local, generator(task.seed, "samples")
        batches = (
            batch
            for _ in count()
            for batch in epoch(
                clips,
                rng,
                batch_size=local.batch_size,
                num_frames=local.num_frames,
                crop=local.crop,
                augment=local.augment,
                mirror=local.mirror,
            )
        )
        for lq, gt in islice(batches, self._num_steps(clips)):
            yield lq.to(self.device), gt.to(self.device)


def _compile(network: torch.nn.Module) -> None:
    """Compile the layers that the network repeats, once for all of them.

    A whole clip's recurrence as one graph takes many minutes to compile and gains nothing over it.
    """
    kinds: Any = network.compiled_layers
    layers = [module for module in network.modules() if isinstance(module, kinds)]
    for layer in layers or [network]:
        layer.compile()


def learning_rate(local: LocalConfig, progress: float) -> float:
    """The learning rate when a part `progress` in [0, 1) of all local steps has been taken."""
    if local.schedule == "constant":
        return local.lr
    span = local.lr - local.min_lr
    return local.min_lr + span * (1 + math.cos(math.pi * progress)) / 2


def _finite(params: Sequence[Tensor]) -> bool:
    norms = torch._foreach_norm([g for p in params if (g := p.grad) is not None])
    return bool(torch.isfinite(torch.stack(norms)).all())


def effective_steps(local: LocalConfig, mu: float, rates: Sequence[float]) -> float:
    """FedNova's |a|_1 (Wang et al. 2020): the way that a gradient of 1 at every step makes.

    In units of the mean learning rate. Adam's steps have a length of their own; theirs are counted.
    """
    if local.optimizer != "sgd":
        return float(len(rates))
    way = momentum = 0.0
    for rate in rates:
        # The pull goes back along the way already made.
        momentum = local.momentum * momentum + (1 - mu * way)
        way += rate * momentum
    return way * len(rates) / math.fsum(rates)


def model_spec(model: ModelConfig) -> ModelSpec:
    """What the network of a `models/<name>.py` section declares."""
    spec: ModelSpec = load("fedvsr.models", model.name).spec(model)
    return spec


def require_sample(model: ModelConfig, local: LocalConfig, scale: int, clip_frames: int) -> None:
    """Check that the network can take the samples asked for, and clips can give them.

    Raises:
        UserError: they cannot; the message names the setting to change.
    """
    spec = model_spec(model)
    if scale != spec.scale:
        raise UserError(
            f"data.scale = {scale}, but the network enlarges by {spec.scale}; make them equal"
        )
    if local.crop % scale:
        raise UserError(f"local.crop = {local.crop} is not a multiple of data.scale = {scale}")
    if local.num_frames > clip_frames:
        raise UserError(
            f"local.num_frames = {local.num_frames} is more than data.clip_frames = {clip_frames}"
        )
    num_frames = local.num_frames * (2 if local.mirror else 1)
    spec.require_sample(num_frames, local.crop // scale, model.name)


def require_room(clips: Sequence[Clip], local: LocalConfig) -> None:
    """Check that the crop fits into every clip.

    Raises:
        UserError: it does not; the message names the clip.
    """
    for clip in clips:
        if min(clip.height, clip.width) < local.crop:
            raise UserError(
                f"local.crop = {local.crop} is larger than clip {clip.clip_id} "
                f"({clip.width} x {clip.height}); lower it"
            )


@contextmanager
def scoped_torch(seed: int, num_threads: int) -> Iterator[None]:
    """Fix torch's own draws (dropout, initial weights) and threads inside, restore both after."""
    before = torch.get_num_threads()
    with torch.random.fork_rng(range(torch.cuda.device_count())):
        torch.manual_seed(seed)
        torch.set_num_threads(num_threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)
