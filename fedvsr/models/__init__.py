"""The networks, one a file: the file's name is the configuration's `model.name`.

A file holds `Config`, a section; `Model`, built from it alone, which maps low-resolution clips
`(B, T, 3, H, W)` in [0, 1] to `(B, T, 3, scale * H, scale * W)`, keeps its size rules as `spec` and
says by `compiled_layers` which layers are worth compiling (none: the whole); and `spec(config)`,
the size rules without the network. `Config.sizes` are the packaged configurations, each with the
recipe that it is trained by.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedvsr.errors import UserError
from fedvsr.lookup import load, names
from fedvsr.models._checkpoint import first_difference, load_tensors, read_tensors
from fedvsr.models._flow import load_flow_weights
from fedvsr.models.spec import FlowModelConfig, ModelConfig


def build(name: str, **config: Any) -> nn.Module:
    """Build the network `name` from its configuration keys.

    Its weights are fresh, but for those that the keys `weights` and `flow_weights` name.

    Raises:
        UserError: there is no such network, or a file does not fit it.
        pydantic.ValidationError: a key is unknown or its value out of bounds.
    """
    settings: ModelConfig = load(__name__, name).Config(**config)
    network = build_fresh(settings)
    load_start(network, settings)
    return network


def build_fresh(config: ModelConfig) -> nn.Module:
    """Build the network of a `models/<name>.py` section; no file is read."""
    network: nn.Module = load(__name__, config.name).Model(config)
    return network


def load_start(network: nn.Module, config: ModelConfig) -> None:
    """Load the weights that the section names to start from, if it names any.

    Raises:
        UserError: a file cannot be read, or does not fit the network.
    """
    if config.weights is not None:
        path = Path(config.weights).expanduser()
        load_tensors(network, read_tensors(path)[0], path)
    if isinstance(config, FlowModelConfig) and config.flow_weights is not None:
        load_flow_weights(network, Path(config.flow_weights).expanduser())


def flow_from_scratch(config: ModelConfig) -> bool:
    """Whether a network that estimates optical flow begins without weights for that."""
    if not isinstance(config, FlowModelConfig):
        return False
    return config.weights is None and config.flow_weights is None


def load_checkpoint(path: str | Path, config: ModelConfig | None = None) -> nn.Module:
    """Load a trained network, in evaluation mode.

    Understands the `model.safetensors` of a run, and what `torch.save` wrote: bare, in a wrapper
    `params`, `params_ema` or `state_dict`, with or without the prefix `module.`. The latter says
    nothing of its configuration: it is the packaged one that has the same tensors, so released
    checkpoints of VRT, RVRT and IART need no more than the path.

    Args:
        path: the file.
        config: the network's section, for a checkpoint of a configuration of your own.

    Raises:
        UserError: the file cannot be read, or fits no known network; the message names the first
            tensor that is missing, of another shape, or unexpected in the nearest one.
    """
    path = Path(path)
    tensors, metadata = read_tensors(path)
    if config is None and "model" in metadata:
        config = _section(metadata["model"])
    if config is None:
        config = _identify(tensors, path)
    network = build_fresh(config)
    load_tensors(network, tensors, path)
    return network.eval()


def packaged(name: str) -> Iterator[ModelConfig]:
    """The packaged configurations of a network."""
    module = load(__name__, name)
    for size in module.Config.sizes:
        yield module.Config(size=size)


def _section(settings: dict[str, Any]) -> ModelConfig:
    section: ModelConfig = load(__name__, settings["name"]).Config(**settings)
    return section


def _identify(tensors: dict[str, Tensor], path: Path) -> ModelConfig:
    """The packaged configuration that has the tensors found."""
    nearest: tuple[int, str, str] | None = None
    for name in names(__name__):
        for config in packaged(name):
            own = _state_of(config)
            difference = first_difference(own, tensors)
            if difference is None:
                return config
            fitting = sum(n in own and own[n].shape == t.shape for n, t in tensors.items())
            if nearest is None or fitting > nearest[0]:
                nearest = (fitting, f"{name} ({config.size})", difference)
    assert nearest is not None
    if nearest[0] == 0:
        raise UserError(f"{path} is no checkpoint of a known network: {', '.join(names(__name__))}")
    raise UserError(
        f"{path} fits no packaged network; as the nearest, {nearest[1]}, it {nearest[2]}"
    )


@lru_cache(maxsize=32)
def _state_of(config: ModelConfig) -> dict[str, Tensor]:
    # Shapes are all that is asked for: no memory, no random draws.
    with torch.device("meta"):
        return build_fresh(config).state_dict()
