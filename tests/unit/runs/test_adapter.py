"""Runs that train adapters of a finished run's network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from fedvsr.config import ExperimentConfig
from fedvsr.models import load_checkpoint
from fedvsr.models._adapter import adapter_names
from fedvsr.records import load_results
from tests.unit.algorithms.test_parts import changed, run

PRIVATE = {"clip_norm": 1.0, "noise_multiplier": 0.5}
METHODS: dict[str, dict[str, dict[str, Any]]] = {
    "fedavg": {},
    "frozen A": {"model": {"adapter": {"rank": 2, "targets": "conv", "freeze_a": True}}},
    "scaffold": {"algorithm": {"name": "scaffold"}},
    "fedadam": {"algorithm": {"name": "fedadam"}},
    "private": {
        "algorithm": {"weights": "uniform"},
        "federation": {"sampling": "poisson", "clients_per_round": 2},
        "update": PRIVATE,
    },
    "int8": {"update": {"compression": "int8"}},
}


def adapted(small: ExperimentConfig, base: Path, **sections: dict[str, Any]) -> ExperimentConfig:
    """The small experiment, in which adapters of another run's network are trained."""
    adapter = {"rank": 2, "targets": "conv"}
    model = {"weights": str(base / "model.safetensors"), "adapter": adapter}
    settings = small.model_dump() | {"algorithm": {"name": "fedavg"}}
    fixed = ExperimentConfig.model_validate(settings)
    sections = {
        "federation": {"num_rounds": 1},
        **sections,
        "model": model | sections.get("model", {}),
    }
    return changed(fixed, **sections)


@pytest.mark.parametrize("method", METHODS)
def test_adapters_alone_are_trained_and_travel(
    method: str, small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    config = adapted(small, undisturbed, **METHODS[method])
    done, results = run(config, tmp_path)
    # The run begins with the scores of the network that it adapts.
    before = load_results(undisturbed).evaluations
    ended = before[before["round_idx"] == before["round_idx"].max()]
    scores = results.evaluations.groupby("round_idx")["psnr_db"].apply(list)
    assert scores[0] == ended["psnr_db"].tolist()
    assert scores[1] != scores[0]
    network = load_checkpoint(done.folder / "model.safetensors")
    own = {*adapter_names(network)}
    assert config.model.adapter is not None
    if config.model.adapter.freeze_a:
        own = {name for name in own if name.endswith("lora_b")}
    values = {name: p.numel() for name, p in network.named_parameters()}
    shared = sum(values[name] for name in own)
    assert int(results.runs["num_shared_params"][0]) == shared
    if not config.update.active:
        vectors = 2 if method == "scaffold" else 1
        assert set(results.clients["upload_bytes"]) == {4 * shared * vectors}
    base = load_file(undisturbed / "model.safetensors")
    after = load_file(done.folder / "model.safetensors")
    assert all(np.array_equal(after[name], value) for name, value in base.items())
    assert all(after[name].any() for name in own)


def test_a_stopped_run_with_adapters_ends_in_the_same_bits(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    config = adapted(small, undisturbed, federation={"num_rounds": 2})
    whole, _ = run(config, tmp_path / "whole")
    stopped, _ = run(config, tmp_path / "stopped", rounds=1)
    one, two = (folder / "model.safetensors" for folder in (whole.folder, stopped.folder))
    assert one.read_bytes() == two.read_bytes()
