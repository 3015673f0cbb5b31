"""Finds a trained network by a run's id, a run's folder, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedvsr import algorithms, models
from fedvsr.checked_text import require_yaml
from fedvsr.config import ExperimentConfig, load_effective, load_model_section
from fedvsr.errors import UserError
from fedvsr.models.origin import parts, source_of, weights_source
from fedvsr.models.spec import ModelSpec
from fedvsr.params import ParamTable, load_flat
from fedvsr.records import read_run
from fedvsr.run_names import NoRunError, find_folder
from fedvsr.training import checkpoint


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in evaluation mode."""

    network: nn.Module
    spec: ModelSpec
    name: str
    """The run's id, or the file."""
    origin: str
    """Where the weights come from, in one line."""
    model: str
    """The network's name; empty for a file whose tensors alone identify the network."""
    config: ExperimentConfig | None
    """The run's configuration; None for a file."""
    weights_source: tuple[str, ...] = ()
    """What it was trained from, see `fedvsr.models.origin`; empty for fresh weights."""


def find_trained(
    name: str, results: Path, model: str | None = None, settings: Sequence[str] = ()
) -> Trained:
    """Load a network by name.

    Args:
        name: a run, see `find_folder`, or a file of weights.
        results: the folder of runs.
        model: the network's name, for a bare file whose configuration is not a packaged one.
        settings: the network's settings, such as `channels=32`.

    Raises:
        UserError: the run or file is missing, or fits no network.
    """
    if settings and model is None:
        raise UserError("--set changes the network's settings; name the network with --model")
    path = Path(name).expanduser()
    folder = None if path.is_file() else _folder(name, path, results)
    if folder:
        if model is not None:
            raise UserError(f"{name} is a run, whose network is known; leave --model out")
        return _from_run(folder)
    if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file():
        raise UserError(f"{path} is part of a run; give the run's folder, {path.parent.parent}")
    section = load_model_section(model, settings) if model is not None else None
    network = models.load_checkpoint(path, section)
    source = source_of(path)
    return Trained(network, _spec(network), str(path), f"{path}", model or "", None, source)


def _folder(name: str, path: Path, results: Path) -> Path:
    if path.is_dir():
        return path
    try:
        return find_folder(name, results)
    except NoRunError:
        raise UserError(
            f"there is no checkpoint {name}: no file, no run's folder, and no run in {results}/ "
            "(`fedvsr list` shows the runs; --results names another folder)"
        ) from None


def _from_run(folder: Path) -> Trained:
    settings = folder / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{folder} is not a run's folder: config.yaml is missing")
    require_yaml(settings)
    # An older version may have recorded settings that have no effect.
    config, name = load_effective(str(settings))[0], folder.resolve().name
    finished = folder / "model.safetensors"
    if algorithms.build(config.algorithm).personal:
        raise UserError(
            f"run {name} trained a network per client; once it has finished, give one of their "
            f"files, such as {checkpoint.client_file(folder, 0)}"
        )
    if finished.is_file():
        network = models.load_checkpoint(finished)
        origin, source = f"run {name}, finished", source_of(finished)
    else:
        network = models.build_fresh(config.model).eval()
        table = ParamTable.of(network)
        saved = checkpoint.latest(folder / "checkpoints", table, config.config_hash()).state
        if saved is None:
            raise UserError(f"run {name} has no checkpoint yet; wait for its first round")
        load_flat(network, saved.server["params"])
        origin = (
            f"run {name}, not finished: after round {saved.round_idx} of "
            f"{config.federation.num_rounds}"
        )
        row = read_run(folder)
        source = parts(row["weights_source"]) if row else weights_source(config.model)
    return Trained(network, _spec(network), name, origin, config.model.name, config, source)


def _spec(network: nn.Module) -> ModelSpec:
    spec = network.spec
    assert isinstance(spec, ModelSpec)
    return spec
