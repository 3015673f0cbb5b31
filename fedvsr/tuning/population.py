"""Population-based training: runs that continue from another run's state with new settings."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from fedvsr import models
from fedvsr.checked import write_parquet
from fedvsr.config import ExperimentConfig
from fedvsr.federation.client_states import ClientStates
from fedvsr.params import ParamTable
from fedvsr.records import read_table
from fedvsr.runs.run import stored_config
from fedvsr.training import checkpoint

_BY_ROUND = ("rounds", "clients", "evaluations")


def pack(run: Path, target: Path) -> None:
    """Copy the newest checkpoint of a run, and its clients' states, into a folder."""
    states = sorted((run / "checkpoints").glob("round-*.safetensors"))
    for path in (*states[-1:], *(run / "checkpoints").glob("client-*.safetensors")):
        shutil.copyfile(path, target / path.name)


def fork(parent: Path, packed: Path, run: Path, config: ExperimentConfig) -> int:
    """Start a new run from another run's state: copy the state and the rounds that led to it.

    The copied rows get the new run's id, because they are the history of its network.

    Args:
        parent: folder of the other run.
        packed: the other run's state, as `pack` wrote it.
        run: folder of the new run.
        config: configuration of the new run.

    Returns:
        The last round that was copied; 0 if the other run had saved no state.
    """
    table = ParamTable.of(models.build_fresh(config.model))
    before = stored_config(parent)
    clients = ClientStates(packed)
    state = checkpoint.latest(packed, table, before.config_hash(), clients.require_readable).state
    if state is None:
        return 0
    identity = {"run_id": run.name, "config_hash": config.config_hash(), "seed": config.seed}
    for name in _BY_ROUND:
        rows = read_table(parent, name)
        rows = rows.filter(pc.less_equal(rows["round_idx"], state.round_idx))
        for column, value in identity.items():
            i = rows.schema.get_field_index(column)
            field = rows.schema.field(i)
            rows = rows.set_column(i, field, pa.array([value] * len(rows), field.type))
        write_parquet(run / f"{name}.parquet", rows)
    folder = run / "checkpoints"
    folder.mkdir(exist_ok=True)
    for path in packed.glob("client-*.safetensors"):
        shutil.copyfile(path, folder / path.name)
    # Last, because a run with a checkpoint counts as one that can be resumed.
    checkpoint.save(folder, state, table, config.config_hash())
    return state.round_idx
