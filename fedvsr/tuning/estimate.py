"""Estimates what a sweep costs, and how many of its trials run at once."""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from fedvsr.config import LOADED_ONLY, ExperimentConfig
from fedvsr.data.videos import resolve
from fedvsr.errors import UserError
from fedvsr.records import load_results
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.expressions import evaluate
from fedvsr.tuning.space import flat
from fedvsr.tuning.sweep import Trial

# 30 years.
_MAX_ROUND_S = 1e9


@dataclass(frozen=True)
class Cost:
    """Seconds of one slot (a GPU, or a client's processors) that each trial takes."""

    slot_s: list[float]
    source: str
    """Where the numbers come from."""

    @property
    def slot_hours(self) -> float:
        """Slot hours of all trials together."""
        return sum(self.slot_s) / 3600

    def wall_hours(self, trials: Sequence[Trial], at_once: int) -> float:
        """Hours until the last trial ends, if each starts as soon as a place is free."""
        ends = [0.0] * at_once
        for trial, slot_s in zip(trials, self.slot_s, strict=True):
            heapq.heappush(ends, heapq.heappop(ends) + slot_s / slots_of(trial.config))
        return max(ends) / 3600


def cost(sweep: SweepConfig, trials: Sequence[Trial], results: Path) -> Cost | None:
    """The cost by the sweep's own estimate, else by runs of the same work under `results`.

    Returns:
        None if the file has no estimate, and some trial's work has no run to measure by.

    Raises:
        UserError: the estimate is not arithmetic over settings of the trials.
    """
    if sweep.estimate:
        per_round = sweep.estimate.gpu_seconds_per_round
        slot_s = [_estimated(per_round, t) * t.config.federation.num_rounds for t in trials]
        return Cost(slot_s, sweep.estimate.source)
    recorded = _recorded(results)
    works = [_work(t.config) for t in trials]
    if not all(work in recorded for work in works):
        return None
    rounds = [t.config.federation.num_rounds for t in trials]
    slot_s = [recorded[work] * n for work, n in zip(works, rounds, strict=True)]
    return Cost(slot_s, f"runs of the same networks and local training under {results}/")


def slots_of(config: ExperimentConfig) -> int:
    """Slots of a trial: `cluster.slots`; by default one, or one for each of `data.owners`."""
    return config.cluster.slots or max(1, len(config.data.owners))


def has_gpus_here(config: ExperimentConfig) -> bool:
    """Whether a trial on this machine would train on a GPU."""
    return config.cluster.gpu_share != 0 and torch.cuda.device_count() > 0


def missing_inputs(configs: Iterable[ExperimentConfig]) -> list[str]:
    """What the trials would read and this machine does not have, a line each.

    It only looks whether the files and folders exist: videos are not cut.
    """
    missing = dict[str, None]()
    for config in configs:
        for key in ("videos", "train", "test"):
            for name in getattr(config.data, key):
                try:
                    path = resolve(name) if key == "videos" else Path(name).expanduser()
                    if not path.exists():
                        missing[f"data.{key}: there is no {name}"] = None
                except UserError as error:
                    missing[f"data.{key}: {error}"] = None
        for key in ("weights", "flow_weights"):
            name = getattr(config.model, key, None)
            if name and not Path(name).expanduser().exists():
                missing[f"model.{key}: there is no {name}"] = None
    return list(missing)


def fits_here(config: ExperimentConfig) -> int:
    """Trials that this machine runs at once, if each slot has its own processors or GPU."""
    if has_gpus_here(config):
        # Whole GPUs: only slots of the same trial share one.
        have = torch.cuda.device_count()
        needed = math.ceil(slots_of(config) / config.cluster.num_per_gpu)
    else:
        have, needed = os.cpu_count() or 1, slots_of(config) * config.local.num_threads
    return max(1, have // needed)


def fits(bundles: Iterable[Mapping[str, float]], total: Mapping[str, float]) -> int:
    """How many trials that need these bundles fit into the resources of a whole cluster."""
    needed = Counter[str]()
    for bundle in bundles:
        needed.update(bundle)
    return min(int(total.get(name, 0) // amount) for name, amount in needed.items() if amount)


def _estimated(per_round: str | float, trial: Trial) -> float:
    try:
        seconds = evaluate(str(per_round), flat(trial.config.model_dump()))
    except UserError as error:
        raise UserError(f"estimate.gpu_seconds_per_round: {error}") from None
    if not 0 <= seconds <= _MAX_ROUND_S:
        raise UserError(
            f"estimate.gpu_seconds_per_round = {seconds:g} in trial {trial.index} is not the time "
            "of a round"
        )
    return seconds


def _recorded(results: Path) -> dict[str, float]:
    """Median slot seconds of a round, by the work that it did."""
    if not results.is_dir():
        return {}
    columns = {"clients": ["round_idx", "train_s"], "runs": ["config"]}
    tables = load_results(results, tables=columns)
    per_round = tables.clients.groupby(["run_id", "round_idx"])["train_s"].sum()
    medians = per_round.groupby("run_id").median()
    work = dict[str, str]()
    for row in tables.runs.to_dict("records"):
        # A run of another version may have settings that this one does not know.
        with suppress(ValueError):
            config = ExperimentConfig.model_validate(json.loads(row["config"]), context=LOADED_ONLY)
            work[row["run_id"]] = _work(config)
    medians = medians[medians.index.isin(work)]
    by_work = medians.groupby(medians.index.map(work)).median()
    return {str(key): float(seconds) for key, seconds in by_work.items()}


def _work(config: ExperimentConfig) -> str:
    """The settings that decide how long a round takes, as text to compare."""
    parts = config.model_dump(mode="json", include={"model", "local"})
    return json.dumps([parts, config.federation.clients_per_round], sort_keys=True)
