"""Local training of one client: the only inner loop. B clips, T frames, values in [0, 1]."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from fedvsr import algorithms, models
from fedvsr.data.clips import Clip
from fedvsr.data.sampling import epoch
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.losses import charbonnier
from fedvsr.messages import ClientReport, ClientTask
from fedvsr.models._spec import ModelSpec
from fedvsr.params import FloatVector, flatten, load_flat
from fedvsr.section import NamedSection, Section
from fedvsr.seeding import derive_seed, generator

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class LocalConfig(Section):
    """Local training of a client in a round."""

    epochs: int = Field(1, ge=1, le=1000, description="Passes over the client's clips per round.")
    steps: int | None = Field(
        None, ge=1, description="Optimiser steps per round, however many passes; replaces epochs."
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Samples a step.")
    num_frames: int = Field(6, ge=1, le=1000, description="Consecutive frames of a sample.")
    crop: int = Field(256, ge=8, le=4096, description="Ground-truth crop in pixels, square.")
    augment: bool = Field(True, description="Flip and transpose samples at random.")
    lr: float = Field(4e-4, gt=0, le=1, description="Adam learning rate.")
    betas: tuple[DecayRate, DecayRate] = Field((0.9, 0.99), description="Adam moment decay rates.")
    num_threads: int = Field(
        1, ge=1, le=256, description="CPU threads of a client; float sums depend on it."
    )


class LocalTrainer:
    """Trains clients one at a time on one device; holds nothing that outlasts a task."""

    def __init__(self, model: NamedSection, algorithm: NamedSection, local: LocalConfig) -> None:
        self.spec = model_spec(model)
        self.local = local
        self.algorithm = algorithms.build(algorithm)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = build_network(model).to(self.device).train()

    def train(
        self, task: ClientTask, params: FloatVector, clips: Sequence[Clip]
    ) -> tuple[ClientReport, FloatVector]:
        """Train from the global parameters (P,), which are only read, on the client's clips.

        Returns:
            What happened, and the client's parameters (P,) afterwards.

        Raises:
            UserError: the loss is not finite.
        """
        started = time.perf_counter()
        with scoped_torch(derive_seed(task.seed, "torch"), self.local.num_threads):
            report = self._train(task, params, clips, started)
            return report, flatten(self.network)

    def _train(
        self, task: ClientTask, params: FloatVector, clips: Sequence[Clip], started: float
    ) -> ClientReport:
        load_flat(self.network, params)
        # Made anew each round, as clients keep nothing: the moments start from zero.
        optimiser = torch.optim.Adam(
            self.network.parameters(), lr=self.local.lr, betas=self.local.betas
        )
        losses, vsr_losses, num_samples = list[float](), list[float](), 0
        for lq_BTCHW, gt_BTCHW in self._batches(task, clips):
            sr_BTCHW = self.network(lq_BTCHW)
            vsr_loss = charbonnier(sr_BTCHW, gt_BTCHW, self.spec.charbonnier_eps)
            loss = self.algorithm.local_loss(vsr_loss, sr_BTCHW, gt_BTCHW)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            losses.append(loss.item())
            vsr_losses.append(vsr_loss.item())
            num_samples += len(lq_BTCHW)
            if not math.isfinite(losses[-1]):
                raise UserError(
                    f"the loss of client {task.client_id} is {losses[-1]} in round "
                    f"{task.round_idx}, step {len(losses)}; lower local.lr = {self.local.lr:g}"
                )
        return ClientReport(
            client_id=task.client_id,
            round_idx=task.round_idx,
            num_samples=num_samples,
            num_steps=len(losses),
            loss=math.fsum(losses) / len(losses),
            vsr_loss=math.fsum(vsr_losses) / len(vsr_losses),
            train_s=time.perf_counter() - started,
        )

    def _batches(self, task: ClientTask, clips: Sequence[Clip]) -> Iterator[tuple[Tensor, Tensor]]:
        local, rng = self.local, generator(task.seed, "samples")
        batches = (
            batch
            for _ in (range(local.epochs) if local.steps is None else count())
            for batch in epoch(
                clips,
                rng,
                batch_size=local.batch_size,
                num_frames=local.num_frames,
                crop=local.crop,
                augment=local.augment,
            )
        )
        for lq, gt in islice(batches, local.steps):
            yield lq.to(self.device), gt.to(self.device)


def model_spec(model: NamedSection) -> ModelSpec:
    """What the network of a `models/<name>.py` section declares."""
    spec: ModelSpec = load("fedvsr.models", model.name).spec(model)
    return spec


def build_network(model: NamedSection) -> torch.nn.Module:
    """The network of a `models/<name>.py` section, with fresh weights."""
    return models.build(**model.model_dump())


def require_sample(model: NamedSection, local: LocalConfig, scale: int, clip_frames: int) -> None:
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
    spec.require_sample(local.num_frames, local.crop // scale, model.name)


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
