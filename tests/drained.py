"""What a generator yields and what it returns."""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

Y = TypeVar("Y")
R = TypeVar("R")


def drained(generator: Generator[Y, None, R]) -> tuple[list[Y], R]:
    yielded = list[Y]()
    try:
        while True:
            yielded.append(next(generator))
    except StopIteration as end:
        return yielded, end.value
