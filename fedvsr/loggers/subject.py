"""What loggers are told about the run that they log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG_FILE = "config.yaml"


@dataclass(frozen=True)
class Subject:
    """A run."""

    run_id: str
    folder: Path
    num_rounds: int
    settings: Mapping[str, Any]
    """Its configuration, as JSON could hold it."""
    facts: Mapping[str, str]
    """What a person may search for, such as the network's name."""

    def flat_settings(self) -> dict[str, str]:
        """Its settings by dotted key, as text."""
        return dict(_flat(self.settings, ""))


def _flat(settings: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for key, value in settings.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", str(value)
