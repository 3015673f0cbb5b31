"""An actor that combines a slice of every client's update. It imports neither torch nor a network.

C is the number of coordinates of a slice.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from fedvsr import algorithms
from fedvsr.algorithms.base import Aggregated
from fedvsr.messages import Round, Vectors
from fedvsr.section import NamedSection

# Slices that are on their way together: more streams, and less waiting for each.
_AHEAD_BYTES, _MOST_AHEAD = 64 << 20, 16


@dataclass(frozen=True)
class Missing:
    """A slice that cannot be fetched."""

    index: int
    """Its client's place among the references."""
    timed_out: bool
    message: str


class SliceActor:
    """Combines slices on one node. Nothing in it outlasts a call.

    Args:
        algorithm: the algorithm's section.
        fetch_s: seconds within which slices must come from their nodes.
    """

    def __init__(self, algorithm: NamedSection, fetch_s: float) -> None:
        self._config, self._fetch_s = algorithm, fetch_s

    def ping(self) -> None:
        """Answer; see `Pulse`."""

    def aggregate(
        self,
        refs: Sequence[Any],
        weights: Sequence[float],
        shared: Vectors,
        part: slice,
        round_info: Round,
    ) -> Aggregated | Missing:
        """Combine a slice; see `FedAvg.aggregate`.

        Args:
            refs: references to that slice of each client's vectors (C,), in sampled order.
            weights: by client.
            shared: the round's broadcast vectors (P,).
            part: where the slice lies in them.
            round_info: the round.
        """
        server = {name: vector[part] for name, vector in shared.items()}
        algorithm = algorithms.build(self._config)
        try:
            uploads = _fetched(refs, 4 * (part.stop - part.start), self._fetch_s)
            return algorithm.aggregate(uploads, weights, server, round_info)
        except _MissingError as error:
            return error.missing


class _MissingError(Exception):
    def __init__(self, missing: Missing) -> None:
        super().__init__(missing.message)
        self.missing = missing


def _fetched(refs: Sequence[Any], nbytes: int, limit_s: float) -> Iterator[Vectors]:
    """The slices in order, each let go of before the next. A few are on their way at once."""
    ahead = max(1, min(_MOST_AHEAD, _AHEAD_BYTES // max(1, nbytes)))
    came = set[Any]()
    for i, ref in enumerate(refs):
        if i % ahead == 0:
            few = list(refs[i : i + ahead])
            came = set(ray.wait(few, num_returns=len(few), timeout=limit_s)[0])
        if ref not in came:
            raise _MissingError(Missing(i, True, f"it did not come within {limit_s:g} s"))
        try:
            vectors: Vectors = ray.get(ref, timeout=limit_s)
        except RayTaskError:
            raise
        except RayError as error:
            timed_out = isinstance(error, GetTimeoutError)
            raise _MissingError(Missing(i, timed_out, type(error).__name__)) from error
        yield vectors
        del vectors
