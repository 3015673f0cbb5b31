"""Rows of a run's tables, made from what a run knows. Columns: `fedvsr.schemas.SCHEMAS`."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.config import ExperimentConfig
from fedvsr.data.client_clips import ClientClips
from fedvsr.environment import versions
from fedvsr.federation.rounds import RoundFinished
from fedvsr.growing import PART_ROWS
from fedvsr.hellinger import hellinger_from_uniform
from fedvsr.inference.scores import ClipScore, headline
from fedvsr.metrics import METRICS
from fedvsr.schemas import Row


def run_row(config: ExperimentConfig) -> Row:
    """The columns of `runs` that the configuration and the installation decide."""
    return {
        "name": config.name,
        "model": config.model.name,
        "algorithm": config.algorithm.name,
        "num_rounds": config.federation.num_rounds,
        "versions": json.dumps(versions()),
        "config": config.model_dump_json(),
    }


def partition_rows(clients: ClientClips) -> Iterator[pa.Table]:
    """The columns of `partition` that say which client holds which clip, some rows at a time."""
    table = clients.rows()
    for part in (table.slice(i, PART_ROWS) for i in range(0, max(len(table), 1), PART_ROWS)):
        sums = part["sha256"]
        known = pc.if_else(pc.equal(sums, pa.scalar("")), pa.scalar(None, pa.string()), sums)
        yield pa.table(
            {name: part[name].cast(pa.int64()) for name in ("num_frames", "height", "width")}
            | {name: part[name].cast(pa.string()) for name in ("label", "degradation")}
            | {name: part[name] for name in ("client_id", "clip_id")}
            | {"sha256": known}
        )


def round_row(finished: RoundFinished, epsilon: float | None) -> Row:
    """A round's row of `rounds`, but for its scores.

    Args:
        finished: the round.
        epsilon: privacy loss so far; None without noise.
    """
    sampled = finished.reports
    accepted = [outcome.report for outcome in finished.outcomes if outcome.accepted]
    return {
        "num_sampled": len(sampled) + finished.num_failed,
        "num_rejected": sum(not report.finite for report in sampled),
        "num_failed": finished.num_failed,
        "num_upload_failures": finished.num_upload_failures,
        "num_online": finished.num_online,
        "loss": mean([report.loss for report in accepted]),
        "vsr_loss": mean([report.vsr_loss for report in accepted]),
        **_weights_row(finished),
        "download_bytes": finished.download_bytes,
        "upload_bytes": sum(report.upload_bytes for report in sampled),
        "epsilon": epsilon,
        "gap_s": finished.gap_s,
        "train_s": finished.train_s,
        "aggregate_s": finished.aggregate_s,
        "aggregate_j": finished.aggregate_j,
    }


def _weights_row(finished: RoundFinished) -> Row:
    """How far the weights of the aggregated clients, as shares of their sum, are from uniform."""
    if finished.weights is None:
        return {}
    pairs = zip(finished.outcomes, finished.weights, strict=True)
    weights = np.array([weight for outcome, weight in pairs if outcome.accepted])
    shares = weights / weights.sum()
    return {
        "weights_hellinger": hellinger_from_uniform(shares.tolist()),
        "weights_deviation": float(np.abs(len(shares) * shares - 1).max()),
    }


def first_step_s(finished: RoundFinished) -> float:
    """Seconds from a round's first task to its first step."""
    starts = (report.started_at - finished.started_at for report in finished.reports)
    return min(starts, default=0.0)


def num_absent(federation: Mapping[str, Any], num_clients: int, num_online: int) -> int:
    """Clients that a round lacked from the start: fewer were online than were to be sampled.

    Args:
        federation: the section of that name, as in the column `config` of `runs`.
        num_clients: registered clients.
        num_online: those that could be reached.
    """
    # Poisson sampling aims at no number.
    poisson = federation.get("sampling") == "poisson"
    wanted = 0 if poisson else min(federation.get("clients_per_round", 0), num_clients)
    return max(0, wanted - num_online)


def shortfall(
    finished: RoundFinished, federation: Mapping[str, Any], num_clients: int
) -> dict[str, int]:
    """How many clients a round lacks in its sum, by the fields of `RoundRecorded`; see above."""
    return {
        "num_upload_failures": finished.num_upload_failures,
        "num_rejected": sum(not report.finite for report in finished.reports),
        "num_failed": finished.num_failed,
        "num_absent": num_absent(federation, num_clients, finished.num_online),
    }


def client_rows(finished: RoundFinished) -> list[Row]:
    """A round's rows of `clients`, in sampled order."""
    return [
        {
            "client_id": report.client_id,
            "position": position,
            "num_samples": report.num_samples,
            "num_steps": report.num_steps,
            "loss": report.loss if report.finite else None,
            "vsr_loss": report.vsr_loss if report.finite else None,
            "rejected": not report.finite,
            "upload_failed": outcome.upload_failed,
            "inverse_loss": 1 / report.loss if report.finite and report.loss else None,
            "weight": finished.weights[position] if finished.weights else None,
            "first_loss": report.first_loss,
            "lr": report.lr,
            "update_norm": report.update_norm if report.finite else None,
            "upload_bytes": report.upload_bytes,
            "attempts": outcome.attempts,
            "node": outcome.node,
            "slot": outcome.slot,
            "started_s": report.started_at - finished.started_at,
            "train_s": report.train_s,
            "input_wait_s": report.input_wait_s,
            "energy_j": report.energy_j or None,
            "gpu_memory_bytes": report.gpu_memory_bytes or None,
            "gpu_utilisation": report.gpu_utilisation or None,
        }
        for position, (outcome, report) in enumerate(
            zip(finished.outcomes, finished.reports, strict=True)
        )
    ]


def mean_row(scores: Sequence[ClipScore]) -> Row:
    """The scores in a round's row: means over the clips of the run's first test set."""
    if not scores:
        return {}
    test_set, means = headline(scores)
    own = {name: value for name, value in means.values.items() if name in METRICS}
    return {"test_set": test_set, **own}


def slot_utilisation(finished: RoundFinished) -> float | None:
    """Share of the training time in which the slots that were used trained; None without slots."""
    slots = {outcome.slot for outcome in finished.outcomes} - {None}
    busy_s = sum(report.train_s for report in finished.reports)
    return busy_s / (len(slots) * finished.train_s) if slots else None


def mean(values: Sequence[float]) -> float | None:
    """Mean of the values; None if there are none."""
    return float(np.mean(values)) if values else None
