"""Run state on disk: one safetensors file a checkpoint, written aside, fsynced and renamed."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file
from torch import nn

from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.models._spec import ModelConfig
from fedvsr.params import FloatVector, ParamTable

_FORMAT = 1
# One entry of metadata: safetensors writes several in an order that changes from run to run.
_KEY = "fedvsr"
# The one before is kept, so that a damaged newest file loses a round and not the run.
_KEPT = 2


def save(
    folder: Path, round_idx: int, params: FloatVector, table: ParamTable, config_hash: str
) -> None:
    """Save the global parameters (P,) after a round; older checkpoints but one are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    metadata = _metadata(round_idx=round_idx, config_hash=config_hash, **asdict(table))
    with replacing(folder / f"round-{round_idx:06d}.safetensors") as aside:
        save_file({"params": params}, str(aside), metadata)
    for old in sorted(folder.glob("round-*.safetensors"))[:-_KEPT]:
        old.unlink()


def latest(folder: Path, table: ParamTable, config_hash: str) -> tuple[int, FloatVector] | None:
    """The newest readable checkpoint as (round, parameters), or None where there is none.

    Raises:
        UserError: all checkpoints are damaged, or of another configuration or network.
    """
    damaged = list[str]()
    for path in sorted(folder.glob("round-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="numpy") as file:
                metadata = json.loads(file.metadata()[_KEY])
                params = np.array(file.get_tensor("params"))
        except (SafetensorError, OSError) as error:
            damaged.append(f"{path} ({error})")
            continue
        if metadata["format"] != _FORMAT or metadata["config_hash"] != config_hash:
            raise UserError(f"{path} belongs to another configuration; it is not resumed from")
        shapes = tuple(map(tuple, metadata["shapes"]))
        table.require_equal(ParamTable(tuple(metadata["names"]), shapes), f"{path}'s parameters")
        return metadata["round_idx"], params
    if damaged:
        raise UserError(f"no checkpoint can be read: {'; '.join(damaged)}; start a new run")
    return None


def save_model(path: Path, network: nn.Module, model: ModelConfig) -> None:
    """Save a trained network by tensor names, with its configuration in the file's metadata."""
    metadata = _metadata(model=model.model_dump(mode="json"))
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    with replacing(path) as aside:
        save_torch_file(tensors, str(aside), metadata)


def _metadata(**values: object) -> dict[str, str]:
    return {_KEY: json.dumps({"format": _FORMAT, **values})}
