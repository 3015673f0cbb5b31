"""Which of a network's parameters travel, which stay with a client, and which never change.

P is the number of parameters, S of those that are shared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Literal

import numpy as np

from fedvsr.params import FloatVector, ParamTable

if TYPE_CHECKING:
    from torch import nn

Role = Literal["shared", "own", "frozen"]
"""What becomes of a parameter: `shared`: it is trained and travels; `own`: it is trained and stays
with its client; `frozen`: it keeps its first value."""
NOT_SHARED: tuple[Role, ...] = ("own", "frozen")


def in_words(num_params: int, num_shared: int | None) -> str:
    """How many parameters a network has, and how many of them travel if not all do.

    None: an older record, in which all do.
    """
    if num_shared in (None, num_params):
        return f"{num_params:,} parameters"
    return f"{num_params:,} parameters, {num_shared:,} of them shared"


@dataclass(frozen=True)
class Layout:
    """The role of each of a network's parameters, in the module's order."""

    table: ParamTable
    """All parameters."""
    roles: tuple[Role, ...]
    """By parameter tensor."""

    @classmethod
    def shared(cls, table: ParamTable) -> Layout:
        """The layout of a network of which everything is trained and travels."""
        return cls(table, tuple("shared" for _ in table.names))

    @property
    def all_shared(self) -> bool:
        """Whether every parameter is shared: vectors of shared ones are then those of all."""
        return set(self.roles) <= {"shared"}

    def table_of(self, *roles: Role) -> ParamTable:
        """The table of the parameters with one of these roles."""
        chosen = [i for i, role in enumerate(self.roles) if role in roles]
        names, shapes = self.table.names, self.table.shapes
        return ParamTable(tuple(names[i] for i in chosen), tuple(shapes[i] for i in chosen))

    def params(self, network: nn.Module, *roles: Role) -> list[nn.Parameter]:
        """The parameters of a network with one of these roles."""
        pairs = zip(network.parameters(), self.roles, strict=True)
        return [parameter for parameter, role in pairs if role in roles]

    def take(self, whole: FloatVector, *roles: Role) -> FloatVector:
        """The values of the parameters with one of these roles, of a vector (P,).

        The vector itself if these are all parameters, else a copy.
        """
        parts = [part for part, role in self._parts if role in roles]
        if len(parts) == len(self._parts):
            return whole
        return np.concatenate([np.empty(0, np.float32), *(whole[part] for part in parts)])

    def whole(
        self, shared: FloatVector, rest: FloatVector, own: FloatVector | None = None
    ) -> FloatVector:
        """All parameters (P,): the inverse of `take`.

        Args:
            shared: values of the shared parameters (S,).
            rest: values of all others, as the run began with them (P - S,).
            own: values of the client's own parameters, if they have changed.
        """
        if self.all_shared:
            return shared
        whole = np.empty(self.table.size, np.float32)
        self._put(whole, shared, "shared")
        self._put(whole, rest, *NOT_SHARED)
        if own is not None:
            self._put(whole, own, "own")
        return whole

    def _put(self, whole: FloatVector, values: FloatVector, *roles: Role) -> None:
        begin = 0
        for part, role in self._parts:
            if role in roles:
                end = begin + part.stop - part.start
                whole[part] = values[begin:end]
                begin = end
        if begin != values.size:
            raise ValueError(f"{values.size} values for {begin} parameters")

    @cached_property
    def _parts(self) -> tuple[tuple[slice, Role], ...]:
        """Where in a vector (P,) neighbours of one role lie, and their role."""
        return tuple(self._runs())

    def _runs(self) -> Iterator[tuple[slice, Role]]:
        begin = end = 0
        for i, (shape, role) in enumerate(zip(self.table.shapes, self.roles, strict=True)):
            end += math.prod(shape)
            if i + 1 == len(self.roles) or self.roles[i + 1] != role:
                yield slice(begin, end), role
                begin = end
