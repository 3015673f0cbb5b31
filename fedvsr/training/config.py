"""The `local` section: how a client trains in a round."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from fedvsr.data.shape import Ends, SampleShape
from fedvsr.precision import Precision
from fedvsr.section import OnlyWith, Section

DecayRate = Annotated[float, Field(ge=0, lt=1)]


class LocalConfig(Section):
    """A client's training in a round. The network's recipe fills in the keys that are left out."""

    epochs: Annotated[int, OnlyWith("steps", None)] = Field(
        1, ge=1, le=1000, description="Passes over the client's clips per round."
    )
    steps: int | None = Field(
        None,
        ge=1,
        description="Optimiser steps per round, whatever the number of passes; replaces epochs.",
    )
    batch_size: int = Field(4, ge=1, le=1024, description="Samples per step.")
    num_frames: int = Field(6, ge=1, le=1000, description="Frames of a sample.")
    interval: Annotated[int, OnlyWith("num_frames", above=1)] = Field(
        1,
        ge=1,
        le=100,
        description="Distance of a sample's frames in the clip: 2 takes every other frame.",
    )
    ends: Annotated[Ends, OnlyWith("num_frames", above=1)] = Field(
        "redraw",
        description="If too few frames follow a start: draw another start, or continue backwards "
        "from the clip's end.",
    )
    crop: int = Field(
        256, ge=8, le=4096, description="Side of the square ground-truth crop, in pixels."
    )
    augment: bool = Field(True, description="Flip and transpose samples at random.")
    random_reverse: Annotated[bool, OnlyWith("num_frames", above=1)] = Field(
        False, description="Reverse samples in time at random."
    )
    mirror: bool = Field(
        False, description="Append each sample's reverse to it, which doubles num_frames."
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="The optimiser.")
    lr: float = Field(4e-4, gt=0, le=1, description="Learning rate.")
    betas: Annotated[tuple[DecayRate, DecayRate], OnlyWith("optimizer", "adam", "adamw")] = Field(
        (0.9, 0.99), description="Decay rates of Adam's moments."
    )
    momentum: Annotated[float, OnlyWith("optimizer", "sgd")] = Field(
        0.0, ge=0, lt=1, description="Momentum of sgd."
    )
    weight_decay: float = Field(0.0, ge=0, le=1, description="Weight decay.")
    schedule: Literal["constant", "cosine"] = Field(
        "constant",
        description="Course of the learning rate over all rounds; cosine ends at min_lr.",
    )
    min_lr: Annotated[float, OnlyWith("schedule", "cosine")] = Field(
        1e-7, ge=0, le=1, description="Learning rate at the end of the cosine schedule."
    )
    train: tuple[str, ...] = Field(
        (),
        description="Parts of the network that are trained, e.g. [decoder]; the others keep their "
        "first values and never travel (default: all; `fedvsr models --parts` lists them).",
    )
    slow_params: tuple[str, ...] = Field(
        (), description="Parts of the names of parameters that learn more slowly, e.g. [spynet]."
    )
    slow_factor: Annotated[float, OnlyWith("slow_params")] = Field(
        1.0, gt=0, le=1, description="Learning rate of slow_params, relative to lr."
    )
    freeze_steps: Annotated[int, OnlyWith("slow_params")] = Field(
        0,
        ge=0,
        description="Local steps, counted over all rounds, before slow_params start to learn.",
    )
    precision: Precision = Field(
        "fp32",
        description="Precision that the network computes in: fp32; tf32, which is fp32 with faster "
        "products on a GPU; bf16; or fp16, which scales the loss.",
    )
    deterministic: bool = Field(
        False,
        description="On a GPU, sum in a fixed order, so that the same task gives the same bits "
        "again; slower. On a CPU it always does.",
    )
    compile: bool = Field(False, description="Compile the network's layers (torch.compile).")
    cuda_graphs: bool = Field(
        True,
        description="On a GPU, replay a step as one CUDA graph from the second step on, so that "
        "the host does not limit it; no result depends on it.",
    )
    num_threads: int = Field(
        1, ge=1, le=256, description="CPU threads of a client; float sums depend on it."
    )
    num_workers: int = Field(
        1, ge=0, le=64, description="Threads that read samples ahead; no result depends on it."
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
