"""The `local` section: how a client trains in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedvsr.data.shape import Ends, SampleShape
from fedvsr.precision import Precision
from fedvsr.section import Section

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class LocalConfig(Section):
    """Local training of a client in a round. A key left out is what the network's recipe says."""

    epochs: int = Field(1, ge=1, le=1000, description="Passes over the client's clips per round.")
    steps: int | None = Field(
        None, ge=1, description="Optimiser steps per round, however many passes; replaces epochs."
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Samples a step.")
    num_frames: int = Field(6, ge=1, le=1000, description="Frames of a sample.")
    interval: int = Field(1, ge=1, le=100, description="Frame step: 2 takes every other frame.")
    ends: Ends = Field(
        "redraw",
        description="Where too few frames follow a start: draw it anew, or go back from the end.",
    )
    crop: int = Field(256, ge=8, le=4096, description="Ground-truth crop in pixels, square.")
    augment: bool = Field(True, description="Flip and transpose samples at random.")
    random_reverse: bool = Field(False, description="Reverse samples in time at random.")
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
    num_workers: int = Field(
        1, ge=0, le=64, description="Threads that read samples ahead; no number depends on it."
    )

    @property
    def sample_shape(self) -> SampleShape:
        """What a sample is made of."""
        return SampleShape(
            num_frames=self.num_frames,
            crop=self.crop,
            interval=self.interval,
            ends=self.ends,
            augment=self.augment,
            random_reverse=self.random_reverse,
            mirror=self.mirror,
        )
