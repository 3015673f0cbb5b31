"""The schema of a sweep file."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from fedvsr.errors import UserError
from fedvsr.lookup import did_you_mean
from fedvsr.metrics import METRICS
from fedvsr.section import NAME, Section, short
from fedvsr.tuning.expressions import names_in
from fedvsr.tuning.pins import Pin
from fedvsr.tuning.space import MAX_TRIALS, Dimension, flat

_SEED = "seed"
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


def _changeable(key: str) -> bool:
    return key.partition(".")[0] in _CHANGEABLE and key != "algorithm.name"
