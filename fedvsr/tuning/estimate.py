"""What a sweep will cost, and how much of it runs at once, before it is started."""

from __future__ import annotations

import heapq
import json
import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.records import load_results
from fedvsr.tuning.expressions import evaluate
from fedvsr.tuning.space import flat
from fedvsr.tuning.sweep import SweepConfig, Trial


@dataclass(frozen=True)
class Cost:
    """Seconds of one slot (a GPU, or a client's processors) by trial, to the last round."""

    slot_s: list[float]
    source: str
    """Where the seconds come from."""

    @property
    def slot_hours(self) -> float:
        """Of all trials together."""
        return sum(self.slot_s) / 3600

    def wall_hours(self, trials: Sequence[Trial], at_once: int) -> float:
        """Until the last trial ends, where each starts as soon as there is room."""
        ends = [0.0] * at_once
        for trial, slot_s in zip(trials, self.slot_s, strict=True):
            heapq.heappush(ends, heapq.heappop(ends) + slot_s / slots_of(trial.config))
        return max(ends) / 3600


def cost(sweep: SweepConfig, trials: Sequence[Trial], results: Path) -> Cost | None:
    """From the sweep's own estimate, else from runs of the same work under `results`.

    None where neither says anything.

    Raises:
        UserError: the estimate is no arithmetic over settings of the trials.
    """
    if sweep.estimate:
        per_round = sweep.estimate.gpu_seconds_per_round
        slot_s = [_given(per_round, t) * t.config.federation.num_rounds for t in trials]
        return Cost(slot_s, sweep.estimate.source)
    recorded = _recorded(results)
    found = [recorded.get(_work(t.config)) for t in trials]
    if any(seconds is None for seconds in found):
        return None
    rounds = [t.config.federation.num_rounds for t in trials]
    slot_s = [seconds * n for seconds, n in zip(found, rounds, strict=True) if seconds is not None]
    return Cost(slot_s, f"runs of the same networks and local training under {results}/")


def slots_of(config: ExperimentConfig) -> int:
    """Slots of a trial: one, if `cluster.slots` says nothing."""
    return config.cluster.slots or 1


def fits_here(config: ExperimentConfig) -> int:
    """Trials that this machine can run at once, each slot with processors or a GPU of its own."""
    num_gpus = 0 if config.cluster.gpu_share == 0 else torch.cuda.device_count()
    if num_gpus:
        # Whole GPUs: those that share one are of the same trial.
        have, needed = num_gpus, math.ceil(slots_of(config) / config.cluster.clients_per_gpu)
    else:
        have, needed = os.cpu_count() or 1, slots_of(config) * config.local.num_threads
    return max(1, have // needed)


def fits(bundles: Iterable[Mapping[str, float]], total: Mapping[str, float]) -> int:
    """Trials of these bundles that a cluster's resources, all together, hold at once."""
    needed = Counter[str]()
    for bundle in bundles:
        needed.update(bundle)
    return min(int(total.get(name, 0) // amount) for name, amount in needed.items() if amount)


def _given(per_round: str | float, trial: Trial) -> float:
    try:
        return evaluate(str(per_round), flat(trial.config.model_dump()))
    except UserError as error:
        raise UserError(f"estimate.gpu_seconds_per_round: {error}") from None


def _recorded(results: Path) -> dict[str, float]:
    """Slot seconds of a round, its median, by what the work was."""
    if not results.is_dir():
        return {}
    tables = load_results(results)
    per_round = tables.clients.groupby(["run_id", "round_idx"])["train_s"].sum()
    medians = per_round.groupby("run_id").median()
    work = {
        row["run_id"]: _work(ExperimentConfig.model_validate(json.loads(row["config"])))
        for row in tables.runs.to_dict("records")
        if row["run_id"] in medians.index
    }
    by_work = medians.groupby(work).median()
    return {str(key): float(seconds) for key, seconds in by_work.items()}


def _work(config: ExperimentConfig) -> str:
    """What decides how long a round takes: two configurations alike in this take as long."""
    parts = config.model_dump(mode="json", include={"model", "local"})
    return json.dumps([parts, config.federation.clients_per_round], sort_keys=True)
