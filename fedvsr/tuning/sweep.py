"""A sweep file: its schema, and the trials that it describes."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError, model_validator

from fedvsr import plugins, yaml12
from fedvsr.checked_text import require_yaml, write_yaml
from fedvsr.config import ExperimentConfig, load_effective
from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.metrics import METRICS
from fedvsr.refusals import explain
from fedvsr.section import NAME, Section, short
from fedvsr.seeding import generator
from fedvsr.settings import parse_override
from fedvsr.tuning.expressions import evaluate, names_in
from fedvsr.tuning.pins import Pin, Pins
from fedvsr.tuning.space import MAX_TRIALS, Dimension, Value, flat, nested
from fedvsr.tuning.table import require_scored

# Draws without a new trial, after which the space counts as exhausted.
_MAX_REDRAWS = 100
_BASE, _SEED, _PLUGINS = "base", "seed", "plugins"
# Sections whose settings population-based training may change in the middle of a run.
_CHANGEABLE = ("algorithm", "local", "update")


class SchedulerConfig(Section):
    """Which trials are stopped early."""

    name: Literal["none", "asha", "median", "pbt"] = Field(
        "none",
        description="none; asha (asynchronous successive halving, Li et al. 2020); median (stop a "
        "trial below the median of the others); pbt (population-based training, Jaderberg et al. "
        "2017: poor trials continue from the state of good ones, with changed values).",
    )
    grace_rounds: int = Field(
        1, ge=1, description="asha, median: rounds before a trial can be stopped."
    )
    reduction_factor: float = Field(
        3.0, gt=1, description="asha: at each rung, one in this many trials continues."
    )
    perturb_rounds: int = Field(5, ge=1, description="pbt: rounds between exchanges.")
    quantile: float = Field(
        0.25,
        gt=0,
        le=0.5,
        description="pbt: share of trials that copy another, and of those that are copied.",
    )
    resample_probability: float = Field(
        0.25,
        ge=0,
        le=1,
        description="pbt: probability that a value is drawn again instead of changed a little.",
    )


class SearcherConfig(Section):
    """How trials are chosen."""

    name: Literal[
        "grid", "random", "optuna", "hyperopt", "nevergrad", "ax", "hebo", "zoopt", "bayesopt"
    ] = Field(
        "grid",
        description="grid: every combination, with random values drawn for each; random: every "
        "value is drawn; the others choose by the results so far, through Ray Tune's wrappers, and "
        "need their package (extra `optuna` for optuna).",
    )
    num_samples: int = Field(
        1,
        ge=1,
        le=MAX_TRIALS,
        description="grid: number of passes over the grid; others: number of trials.",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the random values.")

    @property
    def built_in(self) -> bool:
        """Whether all trials are known before the sweep starts."""
        return self.name in ("grid", "random")


class EstimateConfig(Section):
    """What a trial is expected to cost."""

    gpu_seconds_per_round: str | float = Field(
        description="Seconds of one GPU: a number, or arithmetic over settings such as "
        "6624 * local.epochs."
    )
    source: str = Field(description="Where the number comes from.")


class LoggersConfig(Section):
    """Short for the section `logging` of every trial, whose other settings `set` can give."""

    mlflow: str | None = Field(
        None, description="`logging.mlflow.tracking_uri`; the experiment is the sweep's name."
    )
    wandb: str | None = Field(
        None, description="`logging.wandb.project`; the group is the sweep's name."
    )

    def settings(self, name: str) -> dict[str, Any]:
        """The settings of a trial that this is short for.

        Args:
            name: the sweep's.
        """
        of_mlflow = {"tracking_uri": self.mlflow, "experiment": name}
        of_wandb = {"project": self.wandb, "group": name}
        return {
            **(flat({"logging.mlflow": of_mlflow}) if self.mlflow else {}),
            **(flat({"logging.wandb": of_wandb}) if self.wandb else {}),
        }


class SweepConfig(Section):
    """A sweep: an experiment, the settings that differ, and how the best is found."""

    name: str = Field(
        pattern=NAME, max_length=48, description="Name of the sweep and of its folder."
    )
    description: str = Field("", description="One line on the purpose of the sweep.")
    base: str = Field(description="A preset, or a YAML file beside this one.")
    set: dict[str, Any] = Field({}, description="Settings that differ from base in every trial.")
    space: dict[str, Dimension] = Field(
        min_length=1, description="Settings that differ between trials; the last varies fastest."
    )
    constraints: dict[str, str] = Field(
        {},
        description="Settings computed from swept ones: algorithm.lambda_hifr: "
        "1 - algorithm.lambda_vsr.",
    )
    seeds: list[int] = Field(
        [], description="Run every trial with each of these seeds (default: base's seed)."
    )
    metric: str = Field(
        "psnr_db",
        description="Metric that trials are compared by: loss, or a column of scores such as "
        "psnr_db, which is of the first test set; test/NAME/psnr_db is of the set NAME.",
    )
    mode: Literal["max", "min"] = Field(
        "max",
        description="Whether the highest or the lowest metric is best (default: as the metric is "
        "meant; min for loss, lpips, dists and tof_px).",
    )
    scheduler: SchedulerConfig = Field(
        SchedulerConfig(), description="Which trials are stopped early."
    )
    searcher: SearcherConfig = Field(SearcherConfig(), description="How trials are chosen.")
    plugins: dict[str, Pin] = Field(
        {},
        description="Files of plug-ins by kind and name, and their SHA-256; filled in by fedvsr.",
    )
    executor: Literal["ray", "serial"] = Field(
        "ray",
        description="ray: a trial's clients are actors in its slots. serial: they train one by one "
        "in the trial's process, without a GPU; the bits are the same. Use serial for small "
        "networks, which train faster than processes start.",
    )
    max_failures: int = Field(
        2, ge=0, description="Times that a failed trial is resumed from its checkpoint."
    )
    estimate: EstimateConfig | None = Field(None, description="Expected cost of a trial.")
    loggers: LoggersConfig = Field(LoggersConfig(), description="Where trials log.")

    @model_validator(mode="before")
    @classmethod
    def _follow_metric(cls, values: Any) -> Any:
        """Fill in the direction in which the metric is better."""
        if isinstance(values, Mapping) and "mode" not in values:
            column = str(values.get("metric", "")).rpartition("/")[2]
            known = METRICS.get(column)
            if column == "loss" or (known is not None and not known.higher_is_better):
                return {**values, "mode": "min"}
        return values

    def model_post_init(self, _: object) -> None:
        """Check what concerns several fields at once."""
        self._require_keys()
        self._require_metric()
        self._require_searcher()
        self._require_few_trials()
        if self.scheduler.name == "pbt":
            self._require_population()
        self._require_constraints()

    def _require_keys(self) -> None:
        for key in (*self.swept, *self.constraints, *flat(self.set)):
            if not all(key.split(".")):
                raise UserError(f"{short(key)} does not name a setting; write section.key")

    def _require_metric(self) -> None:
        known = [*METRICS, "loss"]
        of_set = re.fullmatch(r"test/[^/]+/([^/]+)", self.metric)
        if self.metric not in known and not (of_set and of_set[1] in METRICS):
            hint = did_you_mean(of_set[1] if of_set else self.metric, known)
            raise UserError(
                f"metric = {short(self.metric)} is not reported{hint} (there are: "
                f"{', '.join(known)}, and of one test set test/NAME/psnr_db and so on)"
            )

    def _require_searcher(self) -> None:
        if self.seeds and (_SEED in self.space or len(set(self.seeds)) < len(self.seeds)):
            raise UserError("seeds: give each seed once, and no `seed` in space")
        if not self.searcher.built_in and self.seeds:
            raise UserError(
                f"seeds cannot be used with searcher.name = {self.searcher.name}; sweep `seed` "
                "instead"
            )
        random = [key for key, dimension in self.space.items() if dimension.is_random]
        if self.searcher.name == "grid" and self.searcher.num_samples > 1 and not random:
            raise UserError(
                f"searcher.num_samples = {self.searcher.num_samples}, but nothing in space is "
                "random: every repetition would be the same; use seeds"
            )
        if self.searcher.name == "bayesopt" and any(d.finite for d in self.space.values()):
            raise UserError("searcher.name = bayesopt takes only uniform and loguniform")

    def _require_few_trials(self) -> None:
        grid = [len(d.finite or []) for d in self.space.values() if not d.is_random]
        points = math.prod(grid) if self.searcher.name == "grid" else 1
        trials = points * self.searcher.num_samples * max(1, len(self.seeds))
        if trials > MAX_TRIALS:
            raise UserError(
                f"the sweep has {trials:,} trials, more than {MAX_TRIALS:,}; draw some of "
                "them with searcher.name = random"
            )

    def _require_constraints(self) -> None:
        known = self.swept
        for key, expression in self.constraints.items():
            if key in known:
                raise UserError(f"constraints.{key} is in space too; give it once")
            for name in names_in(expression):
                if name not in known:
                    hint = did_you_mean(name, known) or f" (swept: {', '.join(known)})"
                    raise UserError(f"constraints.{key}: {name} is not swept{hint}")

    def _require_population(self) -> None:
        if not self.searcher.built_in or self.seeds:
            raise UserError(
                "scheduler.name = pbt works only with searcher.name = grid or random, and no seeds"
            )
        fixed = [k for k in (*self.space, *self.constraints) if not _changeable(k)]
        fixed += [key for key, dimension in self.space.items() if dimension.cases]
        if fixed:
            raise UserError(
                f"scheduler.name = pbt changes settings in the middle of a run, which {fixed[0]} "
                f"does not allow; sweep keys of {', '.join(_CHANGEABLE)}"
            )

    @property
    def swept(self) -> list[str]:
        """The dotted keys of `space`; those that constraints compute are left out."""
        return [key for name, dimension in self.space.items() for key in dimension.keys(name)]


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


def _changeable(key: str) -> bool:
    return key.partition(".")[0] in _CHANGEABLE and key != "algorithm.name"


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
