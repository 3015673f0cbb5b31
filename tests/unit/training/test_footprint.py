from __future__ import annotations

import pytest

from fedvsr.lookup import load
from fedvsr.training.config import LocalConfig
from fedvsr.training.footprint import measure
from fedvsr.training.local import LocalTrainer


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tiny", "rvrt"])
def test_a_clients_footprint_is_measured(name: str) -> None:
    size = {"size": "demo"} if name == "rvrt" else {}
    model = load("fedvsr.models", name).Config(**size)
    algorithm = load("fedvsr.algorithms", "fedvsr").Config()
    found = [
        measure(LocalTrainer(model, algorithm, LocalConfig(num_frames=n, batch_size=1)))
        for n in (4, 24)
    ]
    for footprint in found:
        assert 0 < footprint.busy <= 1
        assert footprint.peak_bytes < footprint.total_bytes
    assert found[0].peak_bytes < found[1].peak_bytes
