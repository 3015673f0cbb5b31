"""How a round's updates are combined: here, one at a time, or by slices of the vector elsewhere.

P is the number of parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from fedvsr.algorithms.base import Aggregated, FedAvg
from fedvsr.messages import Round, Update, Vectors
from fedvsr.training.updates import incoming

if TYPE_CHECKING:
    from fedvsr.federation.executors import TrainedClient

# Values of a cache line: slices begin at one.
_ALIGNED = 16


@dataclass(frozen=True)
class RoundSum:
    """What an algorithm combines at the end of a round."""

    algorithm: FedAvg
    clients: Sequence[TrainedClient]
    """Those whose update counts, in sampled order."""
    weights: Sequence[float]
    """By client."""
    server: Vectors
    """The server's vectors (P,)."""
    round_info: Round

    @property
    def sliced_round(self) -> Round:
        """What those are told who combine slices, in which no tensor lies where it is said to."""
        return replace(self.round_info, tensors=())


def aggregate_here(work: RoundSum) -> Aggregated:
    """Combine a round's updates in this process, which opens them one at a time.

    Raises:
        LostError: an update is lost.
    """
    uploads = _uploads([client.update for client in work.clients], work.server)
    return work.algorithm.aggregate(uploads, work.weights, work.server, work.round_info)


def _uploads(updates: Iterable[Update], server: Vectors) -> Iterator[Vectors]:
    for update in updates:
        upload = update.upload
        vectors = {name: incoming(vector, server["params"]) for name, vector in upload.items()}
        yield vectors
        # Before the next update is opened.
        del upload, vectors


def cut(size: int, num_slices: int) -> list[slice]:
    """Cut a vector of `size` values into `num_slices` slices of equal length, as far as possible.

    A short vector gives slices without values at its end.
    """
    blocks = -(-size // _ALIGNED)
    ends = [min(size, _ALIGNED * (i * blocks // num_slices)) for i in range(num_slices + 1)]
    return [slice(*pair) for pair in pairwise(ends)]
