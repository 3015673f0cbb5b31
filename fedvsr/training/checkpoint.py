"""Checkpoints of a run: a safetensors file each, written under another name and then renamed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from torch import nn

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.messages import Vectors
from fedvsr.models.spec import ModelConfig
from fedvsr.params import ParamTable

_FORMAT = 2
# A single metadata entry: safetensors writes several in an order that differs between runs.
_KEY = "fedvsr"
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

    Returns:
        `Saved.clients` of each remaining checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(
        round_idx=state.round_idx,
        config_hash=config_hash,
        clients=sorted(state.clients.items()),
        losses=sorted(state.losses.items()),
        **asdict(table),
    )
    with replacing(folder / f"round-{state.round_idx:06d}.safetensors") as aside:
        save_file(dict(state.server), str(aside), metadata)
    for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
        old.unlink()
    return [index for path in folder.glob("round-*.safetensors") if (index := _clients(path))]


@dataclass(frozen=True)
class Newest:
    """The newest checkpoint of a folder that can be read."""

    state: Saved | None
    """Its content; None if the folder has no checkpoint."""
    damaged: tuple[str, ...] = ()
    """What is wrong with newer checkpoints, a message each."""


def latest(folder: Path, table: ParamTable, config_hash: str) -> Newest:
    """Read the newest checkpoint that is not damaged.

    Raises:
        UserError: all checkpoints are damaged, or one belongs to another configuration or network.
    """
    damaged = list[str]()
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = json.loads(file.metadata()[_KEY])
                # An open file has `keys`, but is not iterable.
                server = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        if metadata["format"] != _FORMAT or metadata["config_hash"] != config_hash:
            raise UserError(
                f"{path} belongs to another configuration, so the run cannot be resumed from it; "
                "use the settings that it was started with"
            )
        shapes = tuple(map(tuple, metadata["shapes"]))
        table.require_equal(ParamTable(tuple(metadata["names"]), shapes), f"{path}'s parameters")
        clients, losses = dict(metadata["clients"]), dict(metadata["losses"])
        return Newest(Saved(metadata["round_idx"], server, clients, losses), tuple(damaged))
    if damaged:
        raise UserError(f"no checkpoint can be read: {'; '.join(damaged)}; start a new run")
    return Newest(None)


def _clients(path: Path) -> dict[int, int]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(json.loads(file.metadata()[_KEY])["clients"])
    except (SafetensorError, OSError):
        # A damaged checkpoint is never resumed from, so it needs no client's file.
        return {}


def client_file(folder: Path, client_id: int) -> Path:
    """The file of one client's network in a finished run whose clients keep their own."""
    return folder / "clients" / f"client-{client_id:05d}.safetensors"


def save_model(path: Path, network: nn.Module, model: ModelConfig) -> None:
    """Save a trained network's tensors by name, with its configuration as metadata."""
    metadata = _metadata(model=model.model_dump(mode="json"))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as aside:
        save_torch_file(tensors, str(aside), metadata)


def _metadata(**values: object) -> dict[str, str]:
    return {_KEY: json.dumps({"format": _FORMAT, **values})}
