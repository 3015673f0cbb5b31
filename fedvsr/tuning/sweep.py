"""A sweep file: its schema, and the trials that it stands for."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from fedvsr.config import ExperimentConfig, explain, load_config
from fedvsr.errors import UserError
from fedvsr.files import replacing
from fedvsr.lookup import did_you_mean
from fedvsr.section import Section
from fedvsr.seeding import generator
from fedvsr.tuning.expressions import evaluate, names_in
from fedvsr.tuning.space import Dimension, Value, flat, nested

# Draws of a trial that is not there yet, before its space is taken for exhausted.
_MAX_REDRAWS = 100
_BASE, _SEED = "base", "seed"
# Sections whose settings may change in the middle of a run (population-based training).
_CHANGEABLE = ("algorithm", "local", "update")


class SchedulerConfig(Section):
    """What ends trials early."""

    name: Literal["none", "asha", "median", "pbt"] = Field(
        "none",
        description="none; asha (successive halving without waiting, Li et al. 2020); median (stop "
        "what is below the median of the others); pbt (population-based training, Jaderberg et al. "
        "2017: poor trials go on from good ones with other values).",
    )
    grace_rounds: int = Field(1, ge=1, description="asha, median: rounds that each trial has.")
    reduction_factor: float = Field(
        3.0, gt=1, description="asha: one in so many goes on at each rung."
    )
    perturb_rounds: int = Field(5, ge=1, description="pbt: rounds between exchanges.")
    quantile: float = Field(
        0.25, gt=0, le=0.5, description="pbt: the part that copies, and the part that is copied."
    )
    resample_probability: float = Field(
        0.25, ge=0, le=1, description="pbt: that a value is drawn anew instead of changed a little."
    )


class SearcherConfig(Section):
    """How trials are chosen."""

    name: Literal[
        "grid", "random", "optuna", "hyperopt", "nevergrad", "ax", "hebo", "zoopt", "bayesopt"
    ] = Field(
        "grid",
        description="grid: every combination, with what is random drawn for each; random: all is "
        "drawn; others choose by the results so far, through Ray Tune's wrappers, and need their "
        "package (extra `optuna` for optuna).",
    )
    num_samples: int = Field(
        1, ge=1, description="grid: times the grid is gone through; others: trials."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Of what is drawn.")

    @property
    def built_in(self) -> bool:
        """Whether all trials are known from the beginning."""
        return self.name in ("grid", "random")


class EstimateConfig(Section):
    """What a trial costs, before it has run."""

    gpu_seconds_per_round: str | float = Field(
        description="Seconds of one GPU, or arithmetic over settings: 6624 * local.epochs."
    )
    source: str = Field(description="Where the number comes from.")


class LoggersConfig(Section):
    """Where Tune sends metrics besides TensorBoard."""

    mlflow: str | None = Field(
        None, description="Tracking URI of MLflow (extra `mlflow`), e.g. sqlite:///mlflow.db."
    )
    wandb: str | None = Field(None, description="Project in Weights & Biases (extra `wandb`).")


class SweepConfig(Section):
    """A sweep: an experiment, the settings that differ, and how the best is found."""

    name: str = Field(pattern=r"^[A-Za-z0-9._-]{1,48}$", description="Of the sweep and its folder.")
    description: str = Field("", description="One line on what the sweep is for.")
    base: str = Field(description="A preset, or a YAML file beside this one.")
    set: dict[str, Any] = Field({}, description="Settings that differ from base in every trial.")
    space: dict[str, Dimension] = Field(
        min_length=1, description="What differs between trials; later ones go through faster."
    )
    constraints: dict[str, str] = Field(
        {},
        description="Settings that follow from swept ones: algorithm.lambda_hifr: "
        "1 - algorithm.lambda_vsr.",
    )
    seeds: list[int] = Field([], description="Run every trial with each (default: base's seed).")
    metric: str = Field(
        "psnr_db",
        description="What is compared: psnr_db, ssim, loss, or of one test set test/NAME/psnr_db.",
    )
    mode: Literal["max", "min"] = Field("max", description="Which way is better.")
    scheduler: SchedulerConfig = Field(SchedulerConfig(), description="Stopping early.")
    searcher: SearcherConfig = Field(SearcherConfig(), description="Choosing trials.")
    executor: Literal["ray", "serial"] = Field(
        "ray",
        description="ray: a trial's clients are actors in its slots. serial: they train one by one "
        "in the trial's process, without a GPU; the same bits, and no processes to start, which "
        "small networks would wait for longer than for training.",
    )
    max_failures: int = Field(
        2, ge=0, description="Times a trial that fails goes on from its checkpoint."
    )
    estimate: EstimateConfig | None = Field(None, description="Expected cost.")
    loggers: LoggersConfig = Field(LoggersConfig(), description="Other trackers.")

    def model_post_init(self, _: object) -> None:
        """Check what no field can see alone."""
        if not re.fullmatch(r"psnr_db|ssim|loss|test/[^/]+/(psnr_db|ssim)", self.metric):
            hint = did_you_mean(self.metric, ("psnr_db", "ssim", "loss"))
            raise UserError(
                f"metric = {self.metric} is not reported{hint} (there are: psnr_db, ssim, loss, "
                "and of one test set test/NAME/psnr_db, test/NAME/ssim)"
            )
        if self.seeds and (_SEED in self.space or len(set(self.seeds)) < len(self.seeds)):
            raise UserError("seeds: give each seed once, and no `seed` in space besides")
        if not self.searcher.built_in and self.seeds:
            raise UserError(
                f"seeds do not go with searcher.name = {self.searcher.name}; sweep `seed` instead"
            )
        random = [key for key, dimension in self.space.items() if dimension.is_random]
        if self.searcher.name == "grid" and self.searcher.num_samples > 1 and not random:
            raise UserError(
                f"searcher.num_samples = {self.searcher.num_samples}, but nothing in space is drawn"
                " at random: every repetition would be the same; use seeds"
            )
        if self.searcher.name == "bayesopt" and any(d.finite for d in self.space.values()):
            raise UserError("searcher.name = bayesopt takes uniform and loguniform alone")
        if self.scheduler.name == "pbt":
            self._require_population()
        known = self.swept
        for key, expression in self.constraints.items():
            if key in known:
                raise UserError(f"constraints.{key} is in space too; give it once")
            for name in names_in(expression):
                if name not in known:
                    hint = did_you_mean(name, known) or f" (swept are: {', '.join(known)})"
                    raise UserError(f"constraints.{key}: {name} is not swept{hint}")

    def _require_population(self) -> None:
        if not self.searcher.built_in or self.seeds:
            raise UserError("scheduler.name = pbt goes with searcher.name = grid or random, alone")
        fixed = [k for k in (*self.space, *self.constraints) if not _changeable(k)]
        fixed += [key for key, dimension in self.space.items() if dimension.cases]
        if fixed:
            raise UserError(
                f"scheduler.name = pbt changes settings in the middle of a run, which {fixed[0]} "
                f"does not allow; sweep keys of {', '.join(_CHANGEABLE)}"
            )

    @property
    def swept(self) -> list[str]:
        """The dotted keys that differ between trials, but for those that follow from them."""
        return [key for name, dimension in self.space.items() for key in dimension.keys(name)]


@dataclass(frozen=True)
class Trial:
    """One run of a sweep."""

    index: int
    """From 0."""
    values: Mapping[str, Value]
    """By swept setting, constraint or name of cases, in order."""
    config: ExperimentConfig

    @property
    def run_id(self) -> str:
        """Names its run: the same for the same settings, so that a trial finds its run again."""
        return f"{self.config.name}-{self.config.config_hash()}"

    @property
    def label(self) -> str:
        """The values in words."""
        return describe(self.values)


def describe(values: Mapping[str, Value]) -> str:
    """Values in words: `lambda_vsr=0.1 lambda_hifr=0.9`."""
    return " ".join(f"{key.rpartition('.')[2]}={value}" for key, value in values.items())


def load_sweep(path: Path, overrides: Iterable[str] = (), name: str | None = None) -> SweepConfig:
    """Read a sweep file.

    Args:
        path: of the file.
        overrides: such as `local.lr=1e-3`; they change the experiment in every trial.
        name: of the sweep, instead of the file's.

    Raises:
        UserError: something is missing, unknown, misspelt or out of bounds.
    """
    try:
        settings = yaml.safe_load(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except yaml.YAMLError as error:
        where = getattr(error, "problem_mark", None)
        line = f" line {where.line + 1}" if where else ""
        raise UserError(f"{path}{line} is not valid YAML") from None
    if not isinstance(settings, dict):
        raise UserError(f"{path} holds no sweep")
    settings |= {} if name is None else {"name": name}
    base = settings.get("base")
    if isinstance(base, str):
        settings["base"] = _beside(path, base)
    try:
        config = SweepConfig.model_validate(settings)
    except ValidationError as error:
        # --set changes the settings of trials, not those of the sweep.
        raise UserError(f"{path}: {explain(error, has_overrides=False)}") from None
    changes: dict[str, Any] = {}
    for override in overrides:
        changes |= _parse(override)
    swept = [*config.swept, *config.constraints, *([_SEED] if config.seeds else [])]
    for key in changes:
        if key in swept:
            raise UserError(f"--set {key}: it is swept by {path}; change it there")
    return config.model_copy(update={"set": flat(config.set) | changes})


def save_sweep(config: SweepConfig, path: Path) -> None:
    """Write a sweep so that `load_sweep` reads the same."""
    text = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)
    with replacing(path) as aside:
        aside.write_text(text)


def expand(sweep: SweepConfig) -> list[Trial]:
    """All trials of a grid or random search, in order, each with its checked configuration.

    Raises:
        UserError: a trial's settings are refused, or two trials are the same.
    """
    assert sweep.searcher.built_in
    trials, known = list[Trial](), dict[str, Trial]()
    seeds: list[int | None] = [*sweep.seeds] or [None]
    for point in _points(sweep):
        for seed in seeds:
            values = point if seed is None else {**point, _SEED: seed}
            trial = make_trial(sweep, len(trials), values)
            twin = known.setdefault(trial.config.config_hash(), trial)
            if twin is not trial:
                raise UserError(
                    f"trials {twin.index} ({twin.label}) and {trial.index} ({trial.label}) have "
                    "the same settings; take one out"
                )
            trials.append(trial)
    return trials


def make_trial(sweep: SweepConfig, index: int, point: Mapping[str, Value]) -> Trial:
    """The trial of one point of the space.

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
        changes = [*_overrides(sweep.set), *_overrides(settings), f"name={sweep.name}"]
        if sweep.executor == "serial":
            changes += ["cluster.slots=1", "cluster.gpu_share=0"]
        return Trial(index, values, load_config(base, changes))
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def any_trial(sweep: SweepConfig) -> Trial:
    """One trial of the space, drawn at random.

    Raises:
        UserError: its settings are refused.
    """
    rng = generator(sweep.searcher.seed, "sweep", "any")
    return make_trial(sweep, 0, {key: d.draw(rng) for key, d in sweep.space.items()})


def _points(sweep: SweepConfig) -> Iterator[dict[str, Value]]:
    """Points of the space; those with something random are drawn until they are new."""
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
                    f"{len(seen)} combinations, or few more; lower it"
                )
            seen.add(tuple(point.values()))
            count += 1
            yield point


def _changeable(key: str) -> bool:
    return key.partition(".")[0] in _CHANGEABLE and key != "algorithm.name"


def _overrides(settings: Mapping[str, Any]) -> list[str]:
    """As `load_config` takes them, one a section: a change of name must come with its settings."""
    return [
        f"{key}={yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()}"
        for key, value in nested(flat(settings)).items()
    ]


def _parse(override: str) -> dict[str, Any]:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override!r} is not of the form section.key=value")
    try:
        return flat({key: yaml.safe_load(text)})
    except yaml.YAMLError:
        raise UserError(f"--set {key}: {text!r} is not a valid value") from None


def _beside(path: Path, base: str) -> str:
    """A YAML file is looked for beside the sweep file."""
    return str((path.parent / base).resolve()) if Path(base).suffix in {".yaml", ".yml"} else base
