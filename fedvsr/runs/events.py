"""What a run reports while it is executed: events for programs and people, and their JSON log."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

from fedvsr.federation.executors import Delay, Fault
from fedvsr.federation.rounds import ClientFinished
from fedvsr.inference.scores import ClipScore, headline
from fedvsr.layout import in_words


@dataclass(frozen=True)
class RunStarted:
    """The network is built. Training starts, or resumes after `round_idx`."""

    run_id: str
    round_idx: int
    num_rounds: int
    num_params: int
    num_clients: int
    device: str
    notes: tuple[str, ...]
    """What a person should know about this run, a sentence each."""
    num_shared_params: int | None = None
    """Parameters that are trained and travel; None in an older record."""

    @property
    def parameters(self) -> str:
        """The number of parameters in words."""
        return in_words(self.num_params, self.num_shared_params)


@dataclass(frozen=True)
class RoundRecorded:
    """A round is recorded in the tables. Round 0 is the network before training."""

    round_idx: int
    client_ids: list[int]
    loss: float | None
    scores: list[ClipScore]
    wall_s: float
    slot_utilisation: float | None = None
    """Share of the training time in which the slots that were used trained; None without slots."""
    num_upload_failures: int = 0
    """Clients whose upload was lost."""
    num_rejected: int = 0
    """Clients whose update was not finite."""
    num_failed: int = 0
    """Clients that gave no update; they are not in `client_ids`, but the others are."""
    num_absent: int = 0
    """Clients that the round lacked from the start, because too few were online."""

    @property
    def num_wanted(self) -> int:
        """Clients that the round was to have."""
        return len(self.client_ids) + self.num_failed + self.num_absent

    @property
    def num_aggregated(self) -> int:
        """Clients whose updates are in the round's sum."""
        return len(self.client_ids) - self.num_rejected - self.num_upload_failures


Event = Delay | RunStarted | ClientFinished | Fault | RoundRecorded


def measure(event: Event) -> dict[str, float]:
    """An event's values for a monitor, by metric name."""
    if isinstance(event, Fault):
        return {"fedvsr_faults_total": 1.0}
    if isinstance(event, ClientFinished):
        report = event.report
        return {"fedvsr_step_seconds": report.train_s / max(1, report.num_steps)}
    if isinstance(event, RoundRecorded):
        metrics = {"fedvsr_round": float(event.round_idx)}
        if event.loss is not None:
            metrics["fedvsr_loss"] = event.loss
        if event.slot_utilisation is not None:
            metrics["fedvsr_slot_utilisation"] = event.slot_utilisation
        if event.scores:
            metrics["fedvsr_psnr_db"] = headline(event.scores)[1].values["psnr_db"]
        return metrics
    return {}


class EventLog:
    """Appends events to a file, a JSON object per line. A line that a crash cut off is ended first.

    Args:
        path: the file.
        run_id: goes into every line.
    """

    def __init__(self, path: Path, run_id: str) -> None:
        self._run_id = run_id
        self._file = path.open("a+b")
        self._file.seek(0, 2)
        if self._file.tell():
            self._file.seek(-1, 2)
            if self._file.read(1) != b"\n":
                self._file.write(b"\n")

    def write(self, event: Any) -> None:
        """Append an event, a dataclass: its time, its class, the run and its fields."""
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
    """Put a client's report among the event's own fields, so that `client_id` is one of them."""
    report = fields.pop("report", {})
    return {**fields, **report}


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which JSON does not have, by null."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
