"""Find a trained network: a run by its id, a run's folder, or a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from fedvsr import algorithms, models
from fedvsr.config import ExperimentConfig, load_effective, load_model_section
from fedvsr.errors import UserError
from fedvsr.models.spec import ModelSpec
from fedvsr.params import ParamTable, load_flat
from fedvsr.training import checkpoint


@dataclass(frozen=True)
class Trained:
    """A network with its weights, in evaluation mode."""

    network: nn.Module
    spec: ModelSpec
    name: str
    """The run's id, or the file."""
    origin: str
    """One line on where the weights are from."""
    model: str
    """The network's name; empty where a released file's tensors alone say what it is."""
    config: ExperimentConfig | None
    """The run's configuration."""


def find_trained(
    name: str, results: Path, model: str | None = None, settings: Sequence[str] = ()
) -> Trained:
    """Load the network that `name` stands for.

    Args:
        name: a run's id below `results`, a run's folder, or a file of weights.
        results: the folder of runs.
        model: the network's name, for a bare file of a configuration of your own.
        settings: its settings, such as `channels=32`.

    Raises:
        UserError: there is no such run or file, or it fits no network.
    """
    if settings and model is None:
        raise UserError("--set changes the network's settings; name the network with --model")
    path = Path(name).expanduser()
    folder = path if path.is_dir() else results / name
    if folder.is_dir() and not path.is_file():
        if model is not None:
            raise UserError(f"{name} is a run, which knows its network; leave --model out")
        return _of_run(folder)
    if not path.is_file():
        raise UserError(
            f"there is no checkpoint {name}: no file, no run's folder, and no run in {results}/ "
            "(`fedvsr list` shows those there are; --results names another folder)"
        )
    if path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file():
        raise UserError(f"{path} is part of a run; give the run's folder, {path.parent.parent}")
    section = load_model_section(model, settings) if model is not None else None
    network = models.load_checkpoint(path, section)
    return Trained(network, _spec(network), str(path), f"{path}", model or "", None)


def _of_run(folder: Path) -> Trained:
    settings = folder / "config.yaml"
    if not settings.is_file():
        raise UserError(f"{folder} is no run's folder: it has no config.yaml")
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
        origin = f"run {name}, finished"
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
    return Trained(network, _spec(network), name, origin, config.model.name, config)


def _spec(network: nn.Module) -> ModelSpec:
    spec = network.spec
    assert isinstance(spec, ModelSpec)
    return spec
