"""Reads weights from files: released checkpoints, and the networks of runs."""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fedvsr.checked import first_line, read_metadata
from fedvsr.errors import DamagedError, FileError, UserError

# Keys under which trainers save a state, the preferred first: if a file has averaged weights beside
# raw ones, its authors evaluate the averaged ones.
_WRAPPERS = ("params_ema", "params", "state_dict", "model_state_dict", "generator", "net_g")
# Prefixes of all names that come from the wrappers of trainers and compilers.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net_g.")
# Prefixes of the network in files of a trainer with an adversary; the first that exists counts.
_PARTS = ("generator_ema.", "generator.")


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Read the named tensors of a `.safetensors` file, or of a file of `torch.save`.

    Of a file of `torch.save`, only tensors and plain containers are unpickled. Wrappers such as
    `params_ema`, `params`, `state_dict` and `model_state_dict` are removed, and so are prefixes of
    all names such as `module.`. If names begin with `generator.`, only those are taken.

    Returns:
        The tensors, and the settings of the network that fedvsr wrote; empty for other files.

    Raises:
        UserError: the file cannot be read or is damaged, or holds no table of tensors.
    """
    if path.suffix == ".safetensors":
        tensors, settings = _read_safetensors(path)
        return (tensors if settings else _bare(tensors, path)), settings
    try:
        with warnings.catch_warnings():
            # Warnings about what a file holds besides tensors.
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None
    # torch's own messages name its internals, or advise to run the code in the file.
    except pickle.UnpicklingError:
        raise UserError(
            f"cannot read {path}: it is no file of torch.save, or holds more than tensors and "
            "needs code to load, which is never run"
        ) from None
    except Exception:
        # For a damaged file torch raises nearly anything.
        raise UserError(f"cannot read {path}: it is damaged, or no file of torch.save") from None
    return _bare(content, path), {}


def read_entry(path: Path, key: str) -> object:
    """What a file of `torch.save` holds under a key beside its tensors, which are not read.

    None if there is no such entry, or if the file cannot be read: `read_tensors` says why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception:
        # For a damaged file torch raises nearly anything.
        return None
    return content.get(key) if isinstance(content, Mapping) else None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, object]]:
    try:
        metadata = read_metadata(path)
        with safe_open(str(path), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except DamagedError as error:
        raise UserError(f"cannot read {path}: {error.reason}") from None
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {first_line(error)}") from None
    if "round_idx" in metadata:
        raise FileError(path, "is a part of an unfinished run; give the run's folder")
    settings = metadata.get("model", {})
    if not isinstance(settings, dict):
        raise FileError(path, f"has a network's settings that are no table: {str(settings)[:80]}")
    return tensors, settings


def _bare(content: object, path: Path) -> dict[str, Tensor]:
    """A table of tensors without the wrappers that trainers put around it."""
    # Unwrapped twice at most: a trainer's file may hold the file of another.
    for _ in range(2):
        if isinstance(content, Mapping):
            states = (content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping))
            content = next(states, None) or content
    if not isinstance(content, Mapping) or not content:
        raise FileError(path, "holds no table of tensors")
    table = {str(name): value for name, value in content.items()}
    if len(table) < len(content):
        raise FileError(path, "names a tensor twice, as a number and as text")
    table = _stripped(table, _PREFIXES)
    for prefix in _PARTS:
        if any(name.startswith(prefix) for name in table):
            table = {name: value for name, value in table.items() if name.startswith(prefix)}
            break
    for name, value in table.items():
        if not isinstance(value, Tensor):
            raise FileError(path, f": {name} is a {type(value).__name__}, not a tensor")
    return _stripped(table, (*_PARTS, *_PREFIXES))


def _stripped(table: dict[str, Tensor], prefixes: Sequence[str]) -> dict[str, Tensor]:
    """A table without the prefixes that all of its names have."""
    while prefix := next((p for p in prefixes if all(n.startswith(p) for n in table)), ""):
        table = {name.removeprefix(prefix): value for name, value in table.items()}
    return table


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
        raise FileError(path, difference)
    module.load_state_dict(tensors)
