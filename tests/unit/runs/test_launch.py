"""What a run reserves of a local cluster."""

from __future__ import annotations

from pathlib import Path

import pytest

from fedvsr import models
from fedvsr.config import load_config
from fedvsr.params import ParamTable
from fedvsr.runs.launch import object_store_bytes


@pytest.mark.parametrize(
    ("settings", "num_vectors"),
    [
        # Parameters down, two sets to score, and an upload of each of the two clients.
        (["algorithm.name=fedavg"], 1 + 2 + 2 * 1),
        (["algorithm.name=fedavg", "federation.clients_per_round=4"], 1 + 2 + 4 * 1),
        # Down and up also go control variates, and a client remembers its own.
        (["algorithm.name=scaffold"], 2 + 2 + 2 * 3),
        # Compression: a client remembers what it left out.
        (["algorithm.name=fedavg", "update.compression=int8"], 1 + 2 + 2 * 2),
    ],
)
def test_shared_memory_is_reserved_for_every_vector_of_a_round(
    settings: list[str], num_vectors: int, small_yaml: Path
) -> None:
    config = load_config(str(small_yaml), settings)
    size = 4 * ParamTable.of(models.build_fresh(config.model)).size
    assert object_store_bytes(config) - (256 << 20) == num_vectors * size
