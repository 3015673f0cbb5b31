"""A run's events as JSON, a line each, for programs; people have the live view."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, is_dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any


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
