"""What the coordinate-wise robust methods share. K clients, P parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

import numpy as np
from pydantic import Field

from fedvsr.algorithms.base import Aggregated, AlgorithmConfig, FedAvg
from fedvsr.messages import Round, Vectors
from fedvsr.params import FloatVector

# Values of each client taken at once: 1 MiB a client.
CHUNK = 1 << 18

_MOST_FOR_NETWORK = 16


class RobustConfig(AlgorithmConfig):
    """Robust aggregation knows no weights: a client that lies would lie about its samples too."""

    weights: Literal["uniform"] = Field("uniform", description="Every client counts alike.")


class CoordinateWise(FedAvg):
    """Each coordinate of the result depends on the K clients' values there alone."""

    def aggregate(
        self,
        uploads: Iterable[Vectors],
        weights: Sequence[float],
        server: Vectors,
        this: Round,
    ) -> Aggregated:
        """Holds all K vectors where they are, and `CHUNK` values of each in memory of its own."""
        return Aggregated({"params": by_chunk(uploads, self.combine)}, None)

    def combine(self, values_KC: FloatVector) -> FloatVector:
        """K clients' values `(K, C)` to one `(C,)`."""
        raise AssertionError("a method says how")


def sorted_rows(values_KC: FloatVector) -> FloatVector:
    """Sort every column of `(K, C)`, in place for few rows.

    For these an odd-even network of whole rows: NumPy sorts columns one by one, which for 5 rows
    takes ten times as long.
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


def by_chunk(
    uploads: Iterable[Vectors], combine: Callable[[FloatVector], FloatVector]
) -> FloatVector:
    """Combine K vectors (P,) a chunk of coordinates at a time."""
    vectors = [upload["params"] for upload in uploads]
    result = np.empty_like(vectors[0])
    for begin in range(0, result.size, CHUNK):
        part = slice(begin, begin + CHUNK)
        result[part] = combine(np.stack([vector[part] for vector in vectors]))
    return result
