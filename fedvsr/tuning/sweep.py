"""A sweep file and the trials that it describes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fedvsr import plugins, yaml12
from fedvsr.checked_text import require_yaml, write_yaml
from fedvsr.config import ExperimentConfig, load_effective
from fedvsr.errors import UserError
from fedvsr.refusals import explain
from fedvsr.seeding import generator
from fedvsr.settings import parse_override
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.expressions import evaluate
from fedvsr.tuning.pins import Pins
from fedvsr.tuning.space import Value, flat, nested
from fedvsr.tuning.table import require_scored

# Draws without a new trial, after which the space counts as exhausted.
_MAX_REDRAWS = 100
_BASE, _SEED, _PLUGINS = "base", "seed", "plugins"


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    index: int
    """Number of the trial, from 0."""
    values: Mapping[str, Value]
    """Value by swept setting, constraint or name of cases, in order."""
    config: ExperimentConfig
    unused: tuple[str, ...] = ()
    """Settings of the sweep that have no effect in this trial; `config` has their defaults."""

    @property
    def run_id(self) -> str:
        """Id of its run: equal settings give an equal id, so a trial finds its run again."""
        return f"{self.config.name}-{self.config.config_hash()}"

    @property
    def label(self) -> str:
        """The values, as `describe` writes them."""
        return describe(self.values)


def describe(values: Mapping[str, Value]) -> str:
    """Values for people: `lambda_vsr=0.1 lambda_hifr=0.9`."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())


def load_sweep(path: Path, overrides: Iterable[str] = (), name: str | None = None) -> SweepConfig:
    """Read a sweep file.

    Args:
        path: the file.
        overrides: settings of every trial, such as `local.lr=1e-3`.
        name: name of the sweep (default: the file's).

    Raises:
        UserError: the file cannot be read, or a key is missing, unknown or out of bounds.
    """
    settings = yaml12.load_file(path)
    settings |= {} if name is None else {"name": name}
    if _BASE in settings:
        settings[_BASE] = _beside(path, settings[_BASE])
    space = settings.get("space")
    if isinstance(space, dict) and isinstance(space.get(_BASE), dict):
        space[_BASE] = {how: _beside(path, given) for how, given in space[_BASE].items()}
    pins = _pin(settings, path.parent)
    try:
        config = SweepConfig.model_validate(settings)
    except ValidationError as error:
        # --set changes the settings of trials, not those of the sweep.
        raise UserError(f"{path}: {explain(error, has_overrides=False)}") from None
    changes: dict[str, Any] = {}
    for override in overrides:
        changes |= flat(pins.settings(dict([parse_override(override)]), Path.cwd()))
    swept = [*config.swept, *config.constraints, *([_SEED] if config.seeds else [])]
    for key in changes:
        if key in swept:
            raise UserError(f"--set {key}: it is swept by {path}; change it there")
    changed = {"set": flat(config.set) | changes, "plugins": {**config.plugins, **pins.pins}}
    return config.model_copy(update=changed)


def _pin(settings: dict[str, Any], folder: Path) -> Pins:
    """Pin the files of plug-ins that a sweep file's settings name; they then hold only names."""
    pins = Pins()
    if saved := settings.get(_PLUGINS):
        for pin in saved.values() if isinstance(saved, dict) else ():
            if isinstance(pin, dict) and plugins.is_file(pin.get("file")):
                pin["file"] = plugins.beside(folder, pin["file"])
    if _PLUGINS not in settings:
        for key in ("set", "space"):
            if key in settings:
                settings[key] = pins.settings(settings[key], folder)
        space = settings.get("space")
        swept = space.get(_BASE) if isinstance(space, dict) else None
        lists = swept.values() if isinstance(swept, dict) else ()
        pins.bases([settings.get(_BASE), *(one for bases in lists for one in _as_list(bases))])
    return pins


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def save_sweep(config: SweepConfig, path: Path) -> None:
    """Write a sweep as a file from which `saved_sweep` reads an equal one."""
    write_yaml(path, yaml12.dump(config.model_dump(mode="json")))


def saved_sweep(path: Path) -> SweepConfig:
    """The sweep of a file of `save_sweep`.

    Raises:
        UserError: the file is not as it was written.
    """
    require_yaml(path)
    return load_sweep(path)


def expand(sweep: SweepConfig) -> list[Trial]:
    """All trials of a grid or random search, in order, each with its checked configuration.

    Raises:
        UserError: a trial's settings are refused, two trials are equal, or a setting of the
            sweep has no effect in any trial.
    """
    assert sweep.searcher.built_in
    trials, known, unused = list[Trial](), dict[str, Trial](), set[str]()
    swept = {*sweep.swept, *sweep.constraints}
    seeds: list[int | None] = [*sweep.seeds] or [None]
    for point in _points(sweep):
        for seed in seeds:
            values = point if seed is None else {**point, _SEED: seed}
            trial = make_trial(sweep, len(trials), values)
            twin = known.setdefault(trial.config.config_hash(), trial)
            unused |= {*trial.unused}
            if twin is not trial and swept & {*trial.unused, *twin.unused}:
                # They differ only by what has no effect: one run is enough.
                continue
            if twin is not trial:
                raise UserError(
                    f"trials {twin.index} ({twin.label}) and {trial.index} ({trial.label}) have "
                    "the same settings; take one out"
                )
            trials.append(trial)
    configs = [flat(trial.config.model_dump(mode="json")) for trial in trials]
    for key in sorted(unused):
        # Where a setting has no effect it has its default.
        if all(config.get(key) == configs[0].get(key) for config in configs):
            raise UserError(f"{key} has no effect in any trial; leave it out")
    return trials


def make_trial(sweep: SweepConfig, index: int, point: Mapping[str, Value]) -> Trial:
    """The trial at one point of the space.

    Raises:
        UserError: its settings are refused; the message names the trial.
    """
    settings: dict[str, Any] = {}
    for key, value in point.items():
        settings |= sweep.space[key].settings(key, value) if key in sweep.space else {key: value}
    values = dict(point)
    where = f"trial {index} ({describe(values)})"
    try:
        for key, expression in sweep.constraints.items():
            values[key] = settings[key] = evaluate(expression, settings)
        where = f"trial {index} ({describe(values)})"
        base = str(settings.pop(_BASE, sweep.base))
        changes = as_overrides({**sweep.loggers.settings(sweep.name), **flat(sweep.set)})
        changes += [*as_overrides(settings), f"name={sweep.name}"]
        if sweep.executor == "serial":
            changes += ["cluster.slots=1", "cluster.gpu_share=0"]
        config, unused = load_effective(base, changes, sweep.plugins)
        require_scored(sweep.metric, config)
        own = {*flat(sweep.set), *flat(settings)}
        return Trial(index, values, config, tuple(key for key in unused if key in own))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def any_trial(sweep: SweepConfig) -> Trial:
    """A random trial of the space.

    Raises:
        UserError: its settings are refused.
    """
    rng = generator(sweep.searcher.seed, "sweep", "any")
    return make_trial(sweep, 0, {key: d.draw(rng) for key, d in sweep.space.items()})


def _points(sweep: SweepConfig) -> Iterator[dict[str, Value]]:
    """Points of the space; a point with random values is drawn until it is new."""
    searcher, space = sweep.searcher, sweep.space
    if searcher.name == "random":
        grids: list[dict[str, Value]] = [{}]
    else:
        fixed = {key: d.finite or [] for key, d in space.items() if not d.is_random}
        grids = [dict(zip(fixed, one, strict=True)) for one in itertools.product(*fixed.values())]
    seen, count = set[tuple[Value, ...]](), 0
    for _ in range(searcher.num_samples):
        for grid in grids:
            rng = generator(searcher.seed, "sweep", count)
            for _ in range(_MAX_REDRAWS):
                point = {key: grid[key] if key in grid else d.draw(rng) for key, d in space.items()}
                if tuple(point.values()) not in seen:
                    break
            else:
                raise UserError(
                    f"searcher.num_samples = {searcher.num_samples}: the space has only "
                    f"{len(seen)} combinations, or a few more; lower it"
                )
            seen.add(tuple(point.values()))
            count += 1
            yield point


def as_overrides(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `load_config` takes them, one per section.

    A section is one override because a new `name` must come together with its settings.
    """
    return [
        f"{key}={yaml12.dump(value, flow=True).strip()}"
        for key, value in nested(flat(settings)).items()
    ]


def _beside(path: Path, base: Any) -> Any:
    """The base of a sweep file, or a list of bases: YAML files are searched beside it."""
    if isinstance(base, list):
        return [_beside(path, one) for one in base]
    is_file = isinstance(base, str) and Path(base).suffix in {".yaml", ".yml"}
    return str((path.parent / base).resolve()) if is_file else base
