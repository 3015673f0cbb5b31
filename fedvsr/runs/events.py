"""What a run reports while it goes on: events for programs and people, and their log as JSON."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from fedvsr.federation.executors import Fault
from fedvsr.federation.rounds import ClientFinished
from fedvsr.inference.evaluate import ClipScore


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


class EventLog:
    """Appends to a file. A line that was cut off by a crash is ended first."""

    def __init__(self, path: Path, run_id: str) -> None:
        self._run_id = run_id
        self._file = path.open("a+b")
        self._file.seek(0, 2)
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: Any) -> None:
        """Add an event, a dataclass: its name, when it came, the run, and its fields."""
        assert is_dataclass(event)
        assert not isinstance(event, type)
        line = {
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
            "event": type(event).__name__,
            "run_id": self._run_id,
            **_flat(asdict(event)),
        }
        self._file.write(json.dumps(_finite(line), allow_nan=False).encode() + b"\n")
        self._file.flush()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self._file.close()


def _flat(fields: dict[str, Any]) -> dict[str, Any]:
    """A client's report stands among the event's own fields, so that `client_id` is one."""
    report = fields.pop("report", {})
    return {**fields, **report}


def _finite(value: Any) -> Any:
    """JSON knows no NaN and no infinity: they become null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
