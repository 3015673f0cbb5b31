"""Who owns which client, and on which nodes the owner's clips lie."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from fedvsr.data.config import DataConfig

Labels = Mapping[str, str]
"""Labels of a node, or those that it must have."""


@dataclass(frozen=True)
class Owners:
    """Which client is whose. Without owners, every client belongs to the owner ''."""

    names: tuple[str, ...] = ()
    """In alphabetical order, which is the order of their clients."""
    num_clients: tuple[int, ...] = ()
    """Clients of each."""
    nodes: tuple[Labels, ...] = ()
    """Labels of each one's nodes."""

    @classmethod
    def in_config(cls, config: DataConfig) -> Owners:
        """The owners of a `data` section."""
        return cls.recorded(config.model_dump(include={"owners"}))

    @classmethod
    def recorded(cls, data: Mapping[str, Any]) -> Owners:
        """The owners of a `data` section as a run's tables have it; none in older ones."""
        each = sorted((data.get("owners") or {}).items())
        return cls(
            tuple(name for name, _ in each),
            tuple(owner["clients"] for _, owner in each),
            tuple(owner["nodes"] for _, owner in each),
        )

    def __str__(self) -> str:
        """Each owner with its clients, on one line."""
        ends = zip(self.names, self.num_clients, self._ends, strict=True)
        return ", ".join(
            f"{name} (client {end - 1})" if count == 1 else f"{name} ({end - count} to {end - 1})"
            for name, count, end in ends
        )

    def __bool__(self) -> bool:
        """Whether there are owners."""
        return bool(self.names)

    def of(self, client_id: int) -> str:
        """The owner of a client."""
        return self.names[bisect_right(self._ends, client_id)] if self.names else ""

    def labels(self, name: str) -> Labels:
        """Labels of an owner's nodes; none for ''."""
        return self.nodes[self.names.index(name)] if name else {}

    @cached_property
    def _ends(self) -> list[int]:
        return list(accumulate(self.num_clients))


NOBODY = Owners()


def has_labels(labels: Labels, needed: Labels) -> bool:
    """Whether a node's labels include those needed."""
    return all(labels.get(key) == value for key, value in needed.items())


def shown(labels: Labels) -> str:
    """Labels as `ray start --labels` takes them."""
    return ",".join(f"{key}={value}" for key, value in labels.items())
