"""What must hold before anything is trained: the network, the samples and the clips fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, get_args

import numpy as np

from fedvsr import algorithms
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.models import KIND, flow_from_scratch
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.plugins import module_of

# In the names of all parameters of SpyNet.
_FLOW_PARAM = "spynet"

if TYPE_CHECKING:
    from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
    from fedvsr.data.clips import Clip
    from fedvsr.models.spec import ModelConfig, ModelSpec
    from fedvsr.section import NamedSection
    from fedvsr.training.config import LocalConfig


def model_spec(model: ModelConfig) -> ModelSpec:
    """The size rules of the network that a `models/<name>` section configures."""
    spec: ModelSpec = module_of(KIND, model).spec(model)
    return spec


def require_sample(
    model: ModelConfig, local: LocalConfig, scale: int, clip_frames: int | None
) -> None:
    """Check that the network takes the configured samples, and that clips are long enough.

    Args:
        model: the network.
        local: what a sample is made of.
        scale: `data.scale`.
        clip_frames: frames of every clip; None if clips differ.

    Raises:
        UserError: a setting does not fit; the message names it.
    """
    spec = model_spec(model)
    if scale != spec.scale:
        raise UserError(
            f"data.scale = {scale}, but the network enlarges by {spec.scale}; "
            f"{_way_to_scale(model, scale, spec.scale)}"
        )
    if local.crop % scale:
        raise UserError(f"local.crop = {local.crop} is not a multiple of data.scale = {scale}")
    if clip_frames is not None and local.sample_shape.span > clip_frames:
        raise UserError(f"{_reach(local)} more than data.clip_frames = {clip_frames}")
    num_frames = local.num_frames * (2 if local.mirror else 1)
    spec.require_sample(num_frames, local.crop // scale, model.name)


def require_flow(model: ModelConfig, local: LocalConfig) -> None:
    """Check that flow which starts from scratch is trained from the first step on.

    Raises:
        UserError: it would stay random: always, or for the first steps, which are 26 rounds or more
            of the paper's 100.
    """
    slow = any(part in _FLOW_PARAM or _FLOW_PARAM in part for part in local.slow_params)
    spec = model_spec(model)
    trains = not local.train or any(spec.in_part(p, f"{_FLOW_PARAM}.") for p in local.train)
    if not trains and flow_from_scratch(model):
        raise UserError(
            f"local.train = [{', '.join(local.train)}] would keep optical flow as it is drawn at "
            "random: start from a trained network by model.weights=PATH, or from SpyNet's released "
            f"weights by model.flow_weights=PATH (the file {RELEASED_FLOW})"
        )
    if local.freeze_steps and slow and flow_from_scratch(model):
        raise UserError(
            f"local.freeze_steps = {local.freeze_steps} would keep optical flow as it is drawn at "
            "random: start from SpyNet's released weights by model.flow_weights=PATH (the file "
            f"{RELEASED_FLOW}), or train flow from scratch by local.freeze_steps=0"
        )


def require_parts(model: ModelConfig, algorithm: AlgorithmConfig, local: LocalConfig) -> None:
    """Check that the parts that settings name are parts of the network.

    Raises:
        UserError: one is not.
    """
    settings = {
        "local.train": local.train,
        "algorithm.share": algorithm.share,
        "algorithm.keep": algorithm.keep,
    }
    known = model_spec(model).parts
    for key, parts in settings.items():
        for part in parts:
            if part not in known:
                there_are = f"it has {', '.join(known)}" if known else "it declares none"
                raise UserError(
                    f"{key} names the part {part!r}, which {model.name} has not"
                    f"{did_you_mean(part, known)}: {there_are} (ModelSpec.parts)"
                )


def require_prompts(model: ModelConfig, algorithm: FedAvg) -> None:
    """Check that the network has prompts if the algorithm learns them.

    Raises:
        UserError: it has none.
    """
    if algorithm.learns_prompts and (model.adapter is None or model.adapter.kind != "prompt"):
        raise UserError(
            f"algorithm.name = {algorithm.config.name} learns prompts of a trained network: give "
            "it by model.weights=PATH, and set model.adapter.kind=prompt"
        )


def require_features(model: ModelConfig, algorithm: NamedSection) -> None:
    """Check that the network declares features if the algorithm contrasts them.

    Raises:
        UserError: it declares none.
    """
    if algorithms.build(algorithm).contrasts and model_spec(model).features is None:
        raise UserError(
            f"algorithm.name = {algorithm.name} contrasts a network's features, and {model.name} "
            "declares none (ModelSpec.features); take another network or algorithm"
        )


def require_room(clips: Sequence[Clip], local: LocalConfig) -> None:
    """Check that a sample fits into every clip.

    Raises:
        UserError: a clip is too short or too small; the message names it.
    """
    # Reading a configuration imports this module, and needs no clips.
    from fedvsr.data.client_clips import ClipTable

    table = ClipTable.of(clips)
    frames, height, width = (
        table.table[name].to_numpy() for name in ("num_frames", "height", "width")
    )
    too_small = (frames < local.sample_shape.span) | (np.minimum(height, width) < local.crop)
    for clip in (table[i] for i in np.flatnonzero(too_small)[:1].tolist()):
        if clip.num_frames < local.sample_shape.span:
            raise UserError(
                f"{_reach(local)} more than clip {clip.clip_id} has ({clip.num_frames}); lower it"
            )
        if min(clip.height, clip.width) < local.crop:
            raise UserError(
                f"local.crop = {local.crop} is larger than clip {clip.clip_id} "
                f"({clip.width} x {clip.height}); lower it"
            )


def _way_to_scale(model: ModelConfig, scale: int, own: int) -> str:
    """What a user can do if the network enlarges by another factor than `data.scale`."""
    for key in ("scale", "upscale"):
        field = type(model).model_fields.get(key)
        if field is not None and scale in (get_args(field.annotation) or (scale,)):
            return f"make them equal, by model.{key}={scale} or data.scale={own}"
    return f"{model.name} has no other scale: set data.scale={own}, or take another network"


def _reach(local: LocalConfig) -> str:
    if local.interval == 1:
        return f"local.num_frames = {local.num_frames} is"
    return (
        f"local.num_frames = {local.num_frames} at local.interval = {local.interval} reaches over "
        f"{local.sample_shape.span} frames,"
    )
