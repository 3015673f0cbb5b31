"""Reads weights from files: released checkpoints, and the networks of runs."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedvsr.errors import UserError

# Keys under which trainers save a state, the preferred first: if a file has averaged weights beside
# raw ones, its authors evaluate the averaged ones.
_WRAPPERS = ("params_ema", "params", "state_dict")
_PREFIX = "module."
# The entry of a safetensors file's metadata that `fedvsr.training.checkpoint` writes.
_METADATA = "fedvsr"


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the named tensors of a `.safetensors` file, or of a file of `torch.save`.

    Of a file of `torch.save`, only tensors and plain containers are unpickled. The wrappers
    `params_ema`, `params` and `state_dict` are removed, and so is a prefix `module.` of all names.

    Returns:
        The tensors, and the settings of the network that fedvsr wrote; empty for other files.

    Raises:
        UserError: the file cannot be read, or holds no table of tensors.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from None
    if isinstance(content, Mapping):
        states = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
        content = next(states, None) or content
    if not isinstance(content, Mapping) or not content:
        raise UserError(f"{path} holds no table of tensors")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise UserError(f"{path}: {name} is a {type(value).__name__}, not a tensor")
    if all(str(name).startswith(_PREFIX) for name in content):
        content = {str(name).removeprefix(_PREFIX): value for name, value in content.items()}
    return dict(content), {}


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {_first_line(error)}") from None
    return tensors, json.loads(metadata.get(_METADATA, "{}")).get("model", {})


def first_difference(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> str | None:
    """How tensors first differ from a network's own, in one phrase; None if they fit."""
    for name, value in own.items():
        if name not in tensors:
            return f"lacks the tensor {name} {list(value.shape)}"
        if tensors[name].shape != value.shape:
            return f"has {name} as {list(tensors[name].shape)}, not {list(value.shape)}"
    unexpected = next((name for name in tensors if name not in own), None)
    if unexpected is not None:
        return f"holds {unexpected} {list(tensors[unexpected].shape)}, which the network lacks"
    return None


def load_tensors(
    module: nn.Module, tensors: Mapping[str, Tensor], path: Path, optional: tuple[str, ...] = ()
) -> None:
    """Load named tensors into a module: all of them, or none if one does not fit.

    Args:
        module: the network, or a part of it.
        tensors: the tensors of a file.
        path: the file, for the message.
        optional: names that may be missing.

    Raises:
        UserError: the tensors do not fit. The message names the first that is missing, of another
            shape, or unexpected.
    """
    own = module.state_dict()
    tensors = {name: own[name] for name in optional if name in own} | dict(tensors)
    difference = first_difference(own, tensors)
    if difference is not None:
        raise UserError(f"{path} {difference}")
    module.load_state_dict(tensors)


def _first_line(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return text.strip().splitlines()[0] if text.strip() else type(error).__name__
