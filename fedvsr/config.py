"""The configuration of an experiment: presets and YAML files, overrides, and clear refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Union

import yaml
from pydantic import Field, TypeAdapter, ValidationError, model_validator

from fedvsr.algorithms import build
from fedvsr.data.config import DataConfig
from fedvsr.errors import UserError
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.privacy import require_private
from fedvsr.federation.sampling import FederationConfig
from fedvsr.inference.config import EvaluationConfig
from fedvsr.lookup import did_you_mean, load, names
from fedvsr.section import Section
from fedvsr.training.config import LocalConfig
from fedvsr.training.requirements import require_features, require_sample
from fedvsr.training.updates import UpdateConfig

if TYPE_CHECKING:
    from fedvsr.algorithms.base import AlgorithmConfig
    from fedvsr.models.spec import ModelConfig

else:

    def _one_of(package: str) -> Any:
        """The `Config` of every module in a package, told apart by its `name`."""
        configs = tuple(load(package, name).Config for name in names(package))
        if len(configs) == 1:
            return configs[0]
        return Annotated[Union[configs], Field(discriminator="name")]  # noqa: UP007

    ModelConfig = _one_of("fedvsr.models")
    AlgorithmConfig = _one_of("fedvsr.algorithms")

_ModelSection: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)

# Sections whose keys depend on their `name`, but for those that all of them share.
_NAMED = ("model", "algorithm")
_SHARED = ("size",)


class CheckpointConfig(Section):
    """How often a run's state is saved."""

    every_rounds: int = Field(1, ge=1, description="Save after every so many rounds.")


class ExperimentConfig(Section):
    """A whole experiment. Equal settings and seeds give equal numbers."""

    name: str = Field(
        "experiment", pattern=r"^[A-Za-z0-9._-]{1,64}$", description="Starts the run's id."
    )
    description: str = Field("", description="One line on what the experiment is for.")
    seed: int = Field(0, ge=0, lt=2**63, description="Root of every random draw.")
    data: DataConfig = Field(description="Clips, and the clients that hold them.")
    model: ModelConfig = Field(description="The network.")
    algorithm: AlgorithmConfig = Field(description="The federated algorithm.")
    federation: FederationConfig = Field(FederationConfig(), description="Rounds and sampling.")
    local: LocalConfig = Field(LocalConfig(), description="Local training.")
    update: UpdateConfig = Field(UpdateConfig(), description="Privacy, compression, rejection.")
    evaluation: EvaluationConfig = Field(EvaluationConfig(), description="Scoring.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="Saving the state.")
    cluster: ClusterConfig = Field(ClusterConfig(), description="Where clients run.")

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, values: Any) -> Any:
        """Let the network's recipe fill in what other sections leave out."""
        if not isinstance(values, Mapping):
            return values
        try:
            model = _ModelSection.validate_python(values.get("model"))
        except ValidationError:
            # The section's own validation says what is wrong.
            return values
        filled = dict(values)
        for section, recipe in model.recipe().items():
            given = values.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = {**recipe, **given}
        return filled

    def model_post_init(self, _: object) -> None:
        """Check what no section can see alone."""
        cohort, num_clients = self.federation.clients_per_round, self.data.num_clients
        if cohort > num_clients:
            raise UserError(
                f"federation.clients_per_round = {cohort} is more than data.num_clients = "
                f"{num_clients}"
            )
        algorithm = build(self.algorithm)
        if (self.update.active or self.update.noise_multiplier) and (
            algorithm.personal or algorithm.pooled
        ):
            raise UserError(
                f"algorithm.name = {self.algorithm.name} sends no updates: leave update.clip_norm, "
                "noise_multiplier and compression out"
            )
        algorithm.require_cohort(cohort)
        require_private(algorithm, self.federation, self.update, num_clients)
        require_features(self.model, self.algorithm)
        frames = self.data.clip_frames if self.data.videos else None
        require_sample(self.model, self.local, self.data.scale, frames)

    def config_hash(self) -> str:
        """Of every setting that can change a number: placement, saving and names are left out."""
        settings = self.model_dump(
            mode="json",
            exclude={
                "name": True,
                "description": True,
                "checkpoint": True,
                "cluster": True,
                "data": {"cache_dir"},
                "local": {"num_workers"},
            },
        )
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def files(self) -> dict[str, list[str]]:
        """The files and folders that the settings name, by setting; none where none is named."""
        named: dict[str, list[str | None]] = {
            "data.videos": [*self.data.videos],
            "data.train": [*self.data.train],
            "data.test": [*self.data.test],
            "model.weights": [self.model.weights],
            "model.flow_weights": [getattr(self.model, "flow_weights", None)],
        }
        return {key: [path for path in paths if path] for key, paths in named.items() if any(paths)}

    def to_yaml(self) -> str:
        """The configuration as YAML that `load_config` reads."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, width=100)


class _ModelAlone(Section):
    """A model section by itself; its errors read as those of a whole experiment."""

    model: ModelConfig


def load_config(source: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Load a preset by name or a YAML file by path, and apply overrides such as `local.lr=1e-3`.

    A file may say `extends: PRESET` and give only what differs.

    Raises:
        UserError: something is missing, unknown, misspelt or out of bounds.
    """
    settings = _read(source)
    for override in overrides:
        settings = _merge(settings, _parse_override(override))
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def load_model_section(name: str, overrides: Iterable[str] = ()) -> ModelConfig:
    """The section of a network, with overrides such as `channels=32`.

    Raises:
        UserError: there is no such network, or a setting is unknown or out of bounds.
    """
    settings: dict[str, Any] = {"name": name}
    for override in overrides:
        settings = _merge(settings, _parse_override(override))
    try:
        return _ModelAlone.model_validate({"model": settings}).model
    except ValidationError as error:
        raise UserError(explain(error)) from None


def presets() -> dict[str, str]:
    """The packaged presets and their one-line descriptions."""
    return {name: str(_read(name).get("description", "")) for name in _preset_names()}


def explain(error: ValidationError, has_overrides: bool = True) -> str:
    """The first refusal of a validation, as one line that names the setting and the way out.

    Args:
        error: the refused validation.
        has_overrides: whether `--set` can give these settings.
    """
    errors = error.errors()
    first = errors[0]
    loc = [str(part) for part in first["loc"]]
    if len(loc) > 1 and loc[0] in _NAMED and first["type"] != "union_tag_invalid":
        # pydantic puts the chosen name between a section and its key.
        loc = [loc[0], *loc[2:]] if loc[1] in names(f"fedvsr.{loc[0]}s") else loc
    path, message = ".".join(loc), first["msg"]
    if first["type"] == "unknown_setting":
        text = f"{path}.{message}" if path else message
    elif first["type"] == "union_tag_invalid":
        tag, known = str(first["ctx"]["tag"]), names(f"fedvsr.{loc[0]}s")
        text = (
            f"{path}.name = {tag} is not one of the {loc[0]}s{did_you_mean(tag, known)} "
            f"(there are: {', '.join(known)})"
        )
    elif first["type"] == "union_tag_not_found":
        text = f"{path}.name is missing (there are: {', '.join(names(f'fedvsr.{loc[0]}s'))})"
    elif first["type"] == "missing":
        text = f"{path} is missing: give it in the file"
        text += f", or by --set {path}=..." if has_overrides else ""
    elif first["type"] == "value_error":
        message = message.removeprefix("Value error, ")
        text = message if message.startswith(path) or not path else f"{path}: {message}"
    else:
        text = f"{path} = {first['input']!r}: {message[:1].lower()}{message[1:]}"
    return text + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else "")


def _read(source: str) -> dict[str, Any]:
    path = Path(source)
    if path.suffix in {".yaml", ".yml"}:
        try:
            text = path.read_text()
        except OSError as error:
            raise UserError(f"{source} cannot be read: {error.strerror}") from None
    else:
        file = resources.files("fedvsr.presets") / f"{source}.yaml"
        if not file.is_file():
            known = _preset_names()
            raise UserError(
                f"{source!r} is neither a preset{did_you_mean(source, known)} nor a .yaml file "
                f"(presets: {', '.join(known)})"
            )
        text = file.read_text()
    try:
        settings = yaml.safe_load(text)
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{source}{line} is not valid YAML") from None
    if not isinstance(settings, dict):
        raise UserError(f"{source} holds no settings")
    base = settings.pop("extends", None)
    return _merge(_read(str(base)), settings) if base is not None else settings


def _preset_names() -> list[str]:
    files = (Path(file.name) for file in resources.files("fedvsr.presets").iterdir())
    return sorted(file.stem for file in files if file.suffix == ".yaml")


def _parse_override(override: str) -> dict[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        settings = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {value!r} is not a valid value") from None
    for part in reversed(key.split(".")):
        settings = {part: settings}
    merged: dict[str, Any] = settings
    return merged


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Changes over base, section by section. Another network takes nothing but its size along."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if not isinstance(old, Mapping) or not isinstance(value, Mapping):
            merged[key] = value
        elif key in _NAMED and value.get("name", old.get("name")) != old.get("name"):
            merged[key] = {k: old[k] for k in _SHARED if k in old} | dict(value)
        else:
            merged[key] = _merge(old, value)
    return merged
