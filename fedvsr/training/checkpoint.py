"""Checkpoints of a run: a safetensors file each, written under another name and then renamed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from fedvsr.checked import read_tensors, write_tensors
from fedvsr.errors import DamagedError, UserError
from fedvsr.messages import Vectors
from fedvsr.models.origin import KEY
from fedvsr.models.spec import ModelConfig
from fedvsr.params import ParamTable

# Format 3 has `Saved.clients` in its metadata, and format 2 the losses too.
_FORMAT, _READABLE = 4, (2, 3, 4)
# Names of the tensors of `Saved.losses` and `Saved.clients`. No vector of a server has such a name.
_LOSSES = (".losses.clients", ".losses.values")
_CLIENTS = (".clients.ids", ".clients.rounds")
# Two, so that a damaged newest file costs one round and not the run.
_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A run's state after a round."""

    round_idx: int
    server: Vectors
    """The server's vectors (P,), `params` among them."""
    clients: dict[int, int]
    """By client, the round whose state it remembers; clients without one are absent."""
    losses: Mapping[int, float]
    """By client, the last loss that it reported."""


def save(folder: Path, state: Saved, table: ParamTable, config_hash: str) -> list[dict[int, int]]:
    """Save a run's state after a round, and remove all older checkpoints except the last one.

    Newer ones are removed too: they are damaged, as the run has resumed from one before them.

    Returns:
        `Saved.clients` of each remaining checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {
        "format": _FORMAT,
        "round_idx": state.round_idx,
        "config_hash": config_hash,
        **asdict(table),
    }
    newest = _path(folder, state.round_idx)
    own = _arrays(_LOSSES, state.losses, np.float64) | _arrays(_CLIENTS, state.clients, np.int64)
    write_tensors(newest, {**state.server, **own}, metadata)
    paths = sorted(folder.glob("round-*.safetensors"))
    kept = [path for path in paths if path <= newest][-_KEPT:]
    for path in paths:
        if path not in kept:
            path.unlink()
    indices = [state.clients if path == newest else _clients(path) for path in kept]
    return [index for index in indices if index]


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint of a folder that can be read."""

    state: Saved | None
    """Its content; None if the folder has no checkpoint."""
    damaged: tuple[str, ...] = ()
    """What is wrong with newer checkpoints, a message each."""


def latest(
    folder: Path,
    table: ParamTable,
    config_hash: str,
    require_clients: Callable[[Mapping[int, int]], None] = lambda _: None,
) -> Newest:
    """Read the newest checkpoint that is not damaged.

    Args:
        folder: the checkpoints'.
        table: the network's parameters.
        config_hash: of the run's configuration.
        require_clients: raises DamagedError if a client's state, to which `Saved.clients` refers,
            is damaged. The checkpoint is then skipped like a damaged one.

    Raises:
        UserError: all checkpoints are damaged, or one belongs to another configuration or network.
    """
    damaged = list[str]()
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            server, metadata = read_tensors(path)
            state = _state(path, server, metadata, table, config_hash)
        except DamagedError as error:
            damaged.append(str(error))
            continue
        try:
            require_clients(state.clients)
        except DamagedError as error:
            damaged.append(f"{path} cannot be used, because {error}")
            continue
        return Newest(state, tuple(damaged))
    if damaged:
        raise UserError(f"no checkpoint can be read: {'; '.join(damaged)}; start a new run")
    return Newest(None)


def saved_rounds(folder: Path) -> list[int]:
    """The rounds after which a folder has a checkpoint, damaged ones included."""
    names = [path.stem.removeprefix("round-") for path in folder.glob("round-*.safetensors")]
    return sorted(int(name) for name in names if name.isdecimal())


def read(folder: Path, round_idx: int, table: ParamTable, config_hash: str) -> Saved:
    """Read the checkpoint after a round.

    Raises:
        UserError: it is damaged, or belongs to another configuration or network.
    """
    path = _path(folder, round_idx)
    server, metadata = read_tensors(path)
    return _state(path, server, metadata, table, config_hash)


def _state(
    path: Path,
    server: dict[str, Any],
    metadata: dict[str, Any],
    table: ParamTable,
    config_hash: str,
) -> Saved:
    """The state in a checkpoint, if it is one of this configuration and network."""
    try:
        of_another = metadata["format"] not in _READABLE or metadata["config_hash"] != config_hash
        shapes = tuple(map(tuple, metadata["shapes"]))
        saved_table = ParamTable(tuple(metadata["names"]), shapes)
        losses = dict(metadata["losses"]) if metadata["format"] == 2 else _dict(_LOSSES, server)
        clients = _clients_of(server, metadata)
        state = Saved(int(metadata["round_idx"]), server, clients, losses)
    except (KeyError, TypeError, ValueError):
        raise DamagedError(path, "is damaged: its metadata is not a checkpoint's") from None
    if of_another:
        raise UserError(
            f"{path} belongs to another configuration, so the run cannot be resumed from it; "
            "use the settings that it was started with"
        )
    table.require_equal(saved_table, f"{path}'s parameters")
    return state


def _clients(path: Path) -> dict[int, int]:
    try:
        return _clients_of(*read_tensors(path, _CLIENTS))
    except (DamagedError, KeyError, TypeError, ValueError):
        # A damaged checkpoint is never resumed from, so it needs no client's file.
        return {}


def _clients_of(tensors: dict[str, Any], metadata: Mapping[str, Any]) -> dict[int, int]:
    """`Saved.clients` of a file; its tensors are removed from `tensors`."""
    return dict(metadata["clients"]) if metadata["format"] < 4 else _dict(_CLIENTS, tensors)


def _arrays(
    names: tuple[str, str], table: Mapping[int, float], kind: type
) -> dict[str, npt.NDArray[Any]]:
    """A table as two arrays under these names, by its keys."""
    keys = sorted(table)
    values: npt.NDArray[Any] = np.array([table[key] for key in keys], kind)
    return {names[0]: np.array(keys, np.int64), names[1]: values}


def _dict(names: tuple[str, str], tensors: dict[str, Any]) -> dict[int, Any]:
    """The table of two arrays of `_arrays`, which are removed from `tensors`."""
    keys, values = (tensors.pop(name).tolist() for name in names)
    return dict(zip(keys, values, strict=True))


def _path(folder: Path, round_idx: int) -> Path:
    return folder / f"round-{round_idx:06d}.safetensors"


def client_file(folder: Path, client_id: int) -> Path:
    """The file of one client's network in a finished run whose clients keep their own."""
    return folder / "clients" / f"client-{client_id:05d}.safetensors"


def save_model(
    path: Path, network: nn.Module, model: ModelConfig, source: Sequence[str] = ()
) -> None:
    """Save a trained network's tensors by name, with its configuration as metadata.

    Args:
        path: the file.
        network: the network.
        model: its configuration.
        source: what it was trained from, see `fedvsr.models.origin`.
    """
    tensors = {name: tensor.detach().cpu().numpy() for name, tensor in network.state_dict().items()}
    contiguous = {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}
    metadata = {"format": _FORMAT, "model": model.model_dump(mode="json"), KEY: list(source)}
    write_tensors(path, contiguous, metadata)
