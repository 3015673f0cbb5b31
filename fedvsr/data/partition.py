"""How clips are dealt to clients."""

from __future__ import annotations

from collections.abc import Sequence

from fedvsr.data.clips import Clip
from fedvsr.seeding import generator


def deal(clips: Sequence[Clip], num_clients: int, seed: int) -> list[tuple[Clip, ...]]:
    """Deal clips to clients at random, one at a time: the paper's "less heterogeneous" setting.

    Counts differ by one at most. Client i holds the i-th tuple.
    """
    order = generator(seed, "partition").permutation(len(clips))
    return [tuple(clips[j] for j in order[i::num_clients]) for i in range(num_clients)]
