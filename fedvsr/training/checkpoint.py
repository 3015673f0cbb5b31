"""Run state on disk: one safetensors file a checkpoint, written aside, fsynced and renamed."""

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
# One entry of metadata: safetensors writes several in an order that changes from run to run.
_KEY = "fedvsr"
# The one before is kept, so that a damaged newest file loses a round and not the run.
_KEPT = 2


@dataclass(frozen=True)
class Saved:
    """A run's state after a round."""

    round_idx: int
    server: Vectors
    """The server's vectors (P,), `params` among them."""
    clients: dict[int, int]
    """By client, the round from which it remembers something."""
    losses: Mapping[int, float]
    """By client, the loss it reported last."""


def save(folder: Path, state: Saved, table: ParamTable, config_hash: str) -> list[dict[int, int]]:
    """Save the server's vectors after a round; older checkpoints but one are removed.

    Returns:
        `Saved.clients` of the checkpoints that are left.
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
class Found:
    """What a folder of checkpoints gives."""

    state: Saved | None
    """The newest that can be read; None where there is none at all."""
    damaged: tuple[str, ...] = ()
    """What is wrong with newer ones."""


def latest(folder: Path, table: ParamTable, config_hash: str) -> Found:
    """The newest readable checkpoint.

    Raises:
        UserError: all checkpoints are damaged, or of another configuration or network.
    """
    damaged = list[str]()
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = json.loads(file.metadata()[_KEY])
                # An open file has names but is no mapping.
                server = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError) as error:
            damaged.append(f"{path} is damaged ({error})")
            continue
        if metadata["format"] != _FORMAT or metadata["config_hash"] != config_hash:
            raise UserError(f"{path} belongs to another configuration; it is not resumed from")
        shapes = tuple(map(tuple, metadata["shapes"]))
        table.require_equal(ParamTable(tuple(metadata["names"]), shapes), f"{path}'s parameters")
        clients, losses = dict(metadata["clients"]), dict(metadata["losses"])
        return Found(Saved(metadata["round_idx"], server, clients, losses), tuple(damaged))
    if damaged:
        raise UserError(f"no checkpoint can be read: {'; '.join(damaged)}; start a new run")
    return Found(None)


def _clients(path: Path) -> dict[int, int]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            return dict(json.loads(file.metadata()[_KEY])["clients"])
    except (SafetensorError, OSError):
        # A damaged one will not be resumed from.
        return {}


def client_file(folder: Path, client_id: int) -> Path:
    """Where a finished run has the network of one client, if each has its own."""
    return folder / "clients" / f"client-{client_id:05d}.safetensors"


def save_model(path: Path, network: nn.Module, model: ModelConfig) -> None:
    """Save a trained network by tensor names, with its configuration in the file's metadata."""
    metadata = _metadata(model=model.model_dump(mode="json"))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as aside:
        save_torch_file(tensors, str(aside), metadata)


def _metadata(**values: object) -> dict[str, str]:
    return {_KEY: json.dumps({"format": _FORMAT, **values})}
