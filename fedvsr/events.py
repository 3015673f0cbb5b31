"""What a run tells while it goes on."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from fedvsr.federation.executors import Fault
from fedvsr.federation.rounds import ClientFinished
from fedvsr.training.evaluate import ClipScore


@dataclass(frozen=True)
class RunStarted:
    """The network is built; training starts or goes on after `round_idx`."""

    run_id: str
    round_idx: int
    num_rounds: int
    num_params: int
    num_clients: int
    device: str
    notes: tuple[str, ...]
    """What a person should know of this run."""


@dataclass(frozen=True)
class RoundRecorded:
    """A round is in the tables; round 0 is the network before training."""

    round_idx: int
    client_ids: list[int]
    loss: float | None
    scores: list[ClipScore]
    wall_s: float
    slot_utilisation: float | None = None
    """Share of the round that slots trained, of those that trained anybody; None without slots."""


Event = RunStarted | ClientFinished | Fault | RoundRecorded


def measure(event: Event) -> dict[str, float]:
    """What an event tells a monitor, by metric."""
    if isinstance(event, Fault):
        return {"fedvsr_faults_total": 1.0}
    if isinstance(event, ClientFinished):
        report = event.report
        return {"fedvsr_step_seconds": report.train_s / max(1, report.num_steps)}
    if isinstance(event, RoundRecorded):
        found = {"fedvsr_round": float(event.round_idx)}
        if event.loss is not None:
            found["fedvsr_loss"] = event.loss
        if event.slot_utilisation is not None:
            found["fedvsr_slot_utilisation"] = event.slot_utilisation
        if event.scores:
            found["fedvsr_psnr_db"] = fmean(score.psnr_db for score in event.scores)
        return found
    return {}
