"""The configuration of an experiment, validated."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

from pydantic import (
    AfterValidator,
    Field,
    SerializeAsAny,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    WrapValidator,
    model_validator,
)

from fedvsr import algorithms, models, plugins, yaml12
from fedvsr.algorithms import build
from fedvsr.data.config import DataConfig
from fedvsr.errors import UserError
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.masking import require_secure
from fedvsr.federation.privacy import require_private
from fedvsr.federation.sampling import FederationConfig
from fedvsr.inference.config import EvaluationConfig
from fedvsr.loggers.config import LoggingConfig
from fedvsr.lookup import load, names
from fedvsr.notice import require_command
from fedvsr.plugins import SHA256, Kind, Plugin
from fedvsr.refusals import and_more, explain
from fedvsr.section import NAME, Section, Unused, show
from fedvsr.settings import anchored, extended, keys, merge, nested, parse_override
from fedvsr.training.config import LocalConfig
from fedvsr.training.requirements import (
    require_features,
    require_flow,
    require_parts,
    require_prompts,
    require_sample,
)
from fedvsr.training.updates import UpdateConfig

LOADED_ONLY = {"plugins": "loaded"}
"""Context of a validation that executes no plug-in, for settings that anybody may have written."""

if TYPE_CHECKING:
    from fedvsr.algorithms.base import AlgorithmConfig, FedAvg
    from fedvsr.models.spec import ModelConfig

else:

    def _one_of(kind: Kind) -> Any:
        """The union of the `Config`s of a package's modules and plug-ins; `name` chooses one."""
        configs = tuple(load(kind.package, name).Config for name in names(kind.package))

        def validated(
            value: object, packaged: ValidatorFunctionWrapHandler, info: ValidationInfo
        ) -> object:
            if getattr(value, "plugin", None) is not None:
                return value
            may_load = info.context != LOADED_ONLY
            if isinstance(value, Mapping) and (found := plugins.find(kind, value, may_load)):
                settings = {k: v for k, v in value.items() if k != SHA256}
                return found.module().Config.model_validate({**settings, "name": found.name})
            return packaged(value)

        packaged = Field(discriminator="name")
        return Annotated[Union[configs], packaged, WrapValidator(validated), SerializeAsAny()]  # noqa: UP007

    ModelConfig = _one_of(models.KIND)
    AlgorithmConfig = _one_of(algorithms.KIND)

_ModelSection: TypeAdapter[ModelConfig] = TypeAdapter(ModelConfig)

# Settings of `federation` about several clients; pooled training has one.
_OF_COHORTS = (
    *("sampling", "num_candidates", "offline_probability", "upload_failure_probability"),
    "min_updates",
)
# Settings that change no number.
_NO_NUMBER: dict[str, Any] = {
    "name": True,
    "description": True,
    "checkpoint": True,
    "cluster": True,
    "on_finish": True,
    "logging": True,
    "data": {"cache_dir": True, "owners": {"*": {"nodes": True}}},
    "local": {"num_workers": True, "cuda_graphs": True, "deterministic": True},
    "evaluation": {"metric_weights": True},
}


# Settings of later versions, with the value that earlier versions had in effect.
_LATER: tuple[tuple[str, str, object], ...] = (
    ("data", "owners", {}),
    ("model", "adapter", None),
    ("model", "start", "published"),
    ("algorithm", "share", []),
    ("algorithm", "keep", []),
    ("local", "train", []),
    ("update", "secure_sum", False),
)


class CheckpointConfig(Section):
    """How often a run's state is saved."""

    every_rounds: int = Field(1, ge=1, description="Rounds from one checkpoint to the next.")


class ExperimentConfig(Section):
    """A whole experiment. Equal settings and seeds give equal numbers."""

    name: str = Field(
        "experiment", pattern=NAME, max_length=64, description="First part of the run's id."
    )
    description: str = Field("", description="The experiment's purpose, in one line.")
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
    on_finish: Annotated[str, AfterValidator(require_command)] = Field(
        "",
        description="Command to call when the run, or its sweep, ends in whatever way, e.g. "
        'notify-send "{run_id} {status}".',
    )
    logging: LoggingConfig = Field(LoggingConfig(), description="TensorBoard, MLflow, W&B.")

    @model_validator(mode="before")
    @classmethod
    def _follow_recipe(cls, values: Any, info: ValidationInfo) -> Any:
        """Fill in what sections leave out from the network's recipe."""
        if not isinstance(values, Mapping):
            return values
        try:
            model = _ModelSection.validate_python(values.get("model"), context=info.context)
        except ValidationError:
            # The section's own validation reports the mistake.
            return values
        filled = dict(values)
        for section, recipe in model.recipe().items():
            settings = values.get(section, {})
            if isinstance(settings, Mapping):
                filled[section] = {**recipe, **settings}
        return filled

    def model_post_init(self, _: object) -> None:
        """Check what no section can check alone."""
        cohort, num_clients = self.federation.clients_per_round, self.data.num_clients
        if cohort > num_clients:
            raise UserError(
                f"federation.clients_per_round = {cohort} is more than data.num_clients = "
                f"{num_clients}"
            )
        algorithm = build(self.algorithm)
        update = self.update
        if (update.active or update.noise_multiplier or update.secure_sum) and (
            not algorithm.upload or algorithm.pooled
        ):
            raise UserError(
                f"algorithm.name = {self.algorithm.name} sends no updates: leave update.clip_norm, "
                "noise_multiplier, secure_sum and compression out"
            )
        if algorithm.pooled and self.data.owners:
            raise UserError(
                f"algorithm.name = {self.algorithm.name} trains on all clips in one place, and "
                "those of data.owners stay with their owners; take another algorithm, or data.train"
            )
        algorithm.require_cohort(cohort)
        if self.federation.upload_failure_probability:
            _require_any_cohort(algorithm)
        require_private(algorithm, self.federation, self.update, num_clients)
        require_secure(algorithm, self.federation, self.cluster, self.update)
        require_features(self.model, self.algorithm)
        frames = self.data.clip_frames if self.data.videos else None
        require_sample(self.model, self.local, self.data.scale, frames)
        require_parts(self.model, self.algorithm, self.local)
        require_prompts(self.model, algorithm)
        require_flow(self.model, self.local)

    def without_effect(self, path: str = "") -> list[Unused]:
        """Settings that differ from their defaults and have no effect, in any section."""
        unused = super().without_effect(path)
        algorithm = build(self.algorithm)
        if algorithm.pooled:
            settings, reason = [*_OF_COHORTS], "trains one client in every round"
        elif not algorithm.upload:
            settings, reason = ["upload_failure_probability"], "sends no updates"
        else:
            return unused
        known = {setting.key for setting in unused}
        for name in settings:
            key, value = f"federation.{name}", getattr(self.federation, name)
            default = FederationConfig.model_fields[name].default
            if value != default and key not in known:
                text = (
                    f"{key} = {show(value)} has no effect: algorithm.name = "
                    f"{self.algorithm.name} {reason}; leave it out"
                )
                unused.append(Unused(key, default, text))
        return unused

    def config_hash(self) -> str:
        """Hash of the settings that can change a number.

        It does not depend on placement, saving and names, nor on settings without effect.
        """
        # Reset before they are left out: a reset adds what it resets.
        settings = _without(_reset(self.model_dump(mode="json"), self.without_effect()), _NO_NUMBER)
        for section, name, value in _LATER:
            # Earlier versions had no such setting: their runs keep their hashes.
            if settings[section].get(name) == value:
                settings[section].pop(name, None)
        if not self.update.secure_sum:
            del settings["update"]["secure_range"]
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]

    def files(self) -> dict[str, list[str]]:
        """The files and folders that settings name, by setting; settings without one are absent."""
        named: dict[str, list[str | None]] = {
            "data.videos": [*self.data.videos],
            "data.train": [*self.data.train],
            "data.owners": [path for owner in self.data.owners.values() for path in owner.train],
            "data.test": [*self.data.test],
            "model.weights": [self.model.weights],
            "model.flow_weights": [getattr(self.model, "flow_weights", None)],
            "evaluation.metric_weights": [self.evaluation.metric_weights],
        }
        return {key: [path for path in paths if path] for key, paths in named.items() if any(paths)}

    def to_yaml(self) -> str:
        """The configuration as YAML that `load_config` reads."""
        settings = self.model_dump(mode="json")
        for plugin in self.plugins():
            settings[plugin.kind] = {**settings[plugin.kind], "name": plugin.reference}
            del settings[plugin.kind][SHA256]
        return yaml12.dump(settings)

    def kept_yaml(self) -> str:
        """The configuration as YAML beside which `plugins.keep` writes the files of plug-ins."""
        settings = self.model_dump(mode="json")
        for plugin in self.plugins():
            settings[plugin.kind] = {**settings[plugin.kind], "name": plugin.kept_reference}
        return yaml12.dump(settings)

    def plugins(self) -> list[Plugin]:
        """The plug-ins that it names."""
        return [one.plugin for one in (self.model, self.algorithm) if one.plugin is not None]


def _require_any_cohort(algorithm: FedAvg) -> None:
    """Check that the algorithm takes a single update, which lost uploads may leave of a round."""
    try:
        algorithm.require_cohort(1)
    except UserError:
        raise UserError(
            "federation.upload_failure_probability leaves single updates in some rounds, too few "
            f"for algorithm.name = {algorithm.config.name}; leave one of them out"
        ) from None


class _ModelAlone(Section):
    """A model section by itself; its errors read like those of a whole experiment."""

    model: ModelConfig


def load_config(source: str, overrides: Iterable[str] = ()) -> ExperimentConfig:
    """Load a preset by name or a YAML file by path, and apply overrides such as `local.lr=1e-3`.

    A file with `extends: PRESET` gives only what differs from the preset, or from another file,
    whose path is relative to the folder of the file that names it.

    Raises:
        UserError: a setting is missing, unknown, misspelt, out of bounds, or has no effect although
            the file or an override gives it.
    """
    config, refused = _load(source, overrides)
    if refused:
        raise UserError(refused[0].reason + and_more(refused))
    return config


def load_effective(
    source: str, overrides: Iterable[str] = (), pins: Mapping[str, Pinned] | None = None
) -> tuple[ExperimentConfig, tuple[str, ...]]:
    """Load as `load_config` does, but reset settings without effect to their defaults.

    This is for settings that were not chosen for one experiment: a sweep's, or those that an older
    version of the program recorded.

    Args:
        source: see `load_config`.
        overrides: see `load_config`.
        pins: files to read instead of plug-ins' own, by `kind/name.py`.

    Returns:
        The configuration, and the dotted keys of the file's and overrides' settings that were
        reset.

    Raises:
        UserError: a setting is missing, unknown, misspelt or out of bounds.
    """
    config, unused = _load(source, overrides, pins or {})
    return config, tuple(setting.key for setting in unused)


def load_model_section(name: str, overrides: Iterable[str] = ()) -> ModelConfig:
    """The `model` section of a network, with overrides such as `channels=32`.

    Raises:
        UserError: the network or a setting is unknown, or a value is out of bounds.
    """
    settings: dict[str, Any] = {"name": name}
    for override in overrides:
        settings = merge(settings, nested(*parse_override(override)))
    try:
        return _ModelAlone.model_validate({"model": settings}).model
    except ValidationError as error:
        raise UserError(explain(error)) from None


class Pinned(Protocol):
    """A file to read instead of a plug-in's own, and the SHA-256 that it must have."""

    @property
    def file(self) -> str:
        """Its path."""

    @property
    def sha256(self) -> str:
        """The SHA-256 of its content."""


def _load(
    source: str, overrides: Iterable[str], pins: Mapping[str, Pinned] | None = None
) -> tuple[ExperimentConfig, list[Unused]]:
    """The configuration, in which settings without effect have their defaults.

    Returns:
        The configuration, and the settings without effect that the file or an override sets. Those
        of an extended file, a preset or a recipe are not among them: a change may have taken their
        effect.
    """
    settings, explicit = extended(source)
    for override in overrides:
        change = anchored(nested(*parse_override(override)), Path.cwd())
        settings = merge(settings, change)
        explicit |= set(keys(change))
    for name, pin in (pins or {}).items():
        kind, file = name.split("/")
        section = settings.get(kind)
        if isinstance(section, Mapping) and Path(str(section.get("name"))).name == file:
            settings[kind] = {**section, "name": pin.file, SHA256: pin.sha256}
    config = _validated(settings)
    unused = config.without_effect()
    if unused:
        config = _validated(_reset(settings, unused))
    return config, [setting for setting in unused if setting.key in explicit]


def _validated(settings: Mapping[str, Any]) -> ExperimentConfig:
    try:
        return ExperimentConfig.model_validate(settings)
    except ValidationError as error:
        raise UserError(explain(error)) from None


def _reset(settings: Mapping[str, Any], unused: Iterable[Unused]) -> dict[str, Any]:
    """Settings with the defaults of those without effect."""
    reset = dict(settings)
    for setting in unused:
        reset = merge(reset, nested(setting.key, setting.default))
    return reset


def _without(settings: Mapping[str, Any], names: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without those whose name, or `*`, has the value True, in nested sections too."""
    marks = {key: names.get(key, names.get("*")) for key in settings}
    return {
        key: _without(value, marks[key]) if isinstance(marks[key], Mapping) else value
        for key, value in settings.items()
        if marks[key] is not True
    }
