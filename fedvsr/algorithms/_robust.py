"""What the robust methods share: their settings, and combining clients' values by coordinate.

K clients, P parameters, C coordinates of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg, by_coordinate
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector

# Coordinates combined at a time: 1 MiB per client.
CHUNK = 1 << 18

_MOST_FOR_NETWORK = 16


class RobustConfig(AlgorithmConfig):
    """Settings of robust methods: no weights, because a liar would lie about its samples too."""

    weights: Literal["uniform"] = Field("uniform", description="Every client counts alike.")


class CoordinateWise(FedAvg):
    """Combines the K clients' values of each coordinate independently of all others."""

    @by_coordinate
    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        round_info: Round,
    ) -> Aggregated:
        """Combine chunk by chunk. All K uploads are held; copies are of one `CHUNK` each."""
        return Aggregated({"params": by_chunk(uploads, self.combine)}, None)

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """Combine K clients' values `(K, C)` into one `(C,)`."""
        raise AssertionError("a method overrides this")


def sorted_rows(values_KC: FloatVector) -> FloatVector:
    """Sort every column of `(K, C)`, in place if there are few rows.

    Few rows go through an odd-even sorting network of whole rows: NumPy sorts column by column,
    which takes ten times as long for 5 rows.
    """
    count = len(values_KC)
    if count > _MOST_FOR_NETWORK:
        ordered: FloatVector = np.sort(values_KC, axis=0)
        return ordered
    for step in range(count):
        for i in range(step % 2, count - 1, 2):
            low, high = values_KC[i], values_KC[i + 1]
            smaller = np.minimum(low, high)
            np.maximum(low, high, out=high)
            low[:] = smaller
    return values_KC


def mean_of_rows(values_KC: FloatVector) -> FloatVector:
    """The mean `(C,)` of `(K, C)`, row by row.

    NumPy's own mean adds the values of a single column in another order than those of many.
    """
    total: FloatVector = values_KC[0].copy()
    for row in values_KC[1:]:
        total += row
    total /= np.float32(len(values_KC))
    return total


def by_chunk(
    uploads: Iterable[Vectors], combine: Callable[[FloatVector], FloatVector]
) -> FloatVector:
    """Combine K vectors (P,) into one, a chunk of coordinates at a time."""
    vectors = [upload["params"] for upload in uploads]
    result = np.empty_like(vectors[0])
    for begin in range(0, result.size, CHUNK):
        part = slice(begin, begin + CHUNK)
        result[part] = combine(np.stack([vector[part] for vector in vectors]))
    return result
