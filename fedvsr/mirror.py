"""Positions past the ends of an axis, continued by mirroring."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

_Position = TypeVar("_Position", int, "Tensor")


def mirrored(position: _Position, size: int) -> _Position:
    """The position in [0, size) that lies at `position` if the axis is continued by mirroring.

    The edge is repeated: ... 1 0 | 0 1 ... size - 1 | size - 1 ... An axis that is shorter than the
    distance is mirrored several times.

    Args:
        position: any integer, or a tensor of integers.
        size: length of the axis, at least 1.
    """
    doubled = 2 * (position % (2 * size))
    return (2 * size - 1 - abs(doubled - (2 * size - 1))) // 2
