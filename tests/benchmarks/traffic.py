"""Bytes that cross the network in a round, by arithmetic and by what object stores counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

import ray
from ray._private.internal_api import node_stats

from fedvsr.federation.aggregation import cut

BYTES = 4
"""Bytes of a value."""


def received(
    num_params: int,
    trained: Mapping[str, int],
    driver: str,
    slices: Sequence[str] = (),
    broadcast: int = 1,
    upload: int = 1,
) -> Counter[str]:
    """Bytes that each node receives in a round: vectors alone, what clients remember left out.

    Args:
        num_params: values of a vector.
        trained: clients that each node trained.
        driver: the driver's node.
        slices: the node that combines each slice; empty if the driver combines all.
        broadcast: vectors sent to every node that trains or combines.
        upload: vectors that a client sends.
    """
    nodes = Counter[str]()
    for node in {*trained, *slices} - {driver}:
        # One copy a node, however many clients it trains.
        nodes[node] += broadcast * BYTES * num_params
    for node, part in zip(slices or [driver], cut(num_params, len(slices) or 1), strict=True):
        nbytes = upload * BYTES * (part.stop - part.start)
        nodes[node] += nbytes * sum(count for other, count in trained.items() if other != node)
        if node != driver:
            nodes[driver] += nbytes
    return nodes


def made(
    num_params: int,
    trained: Mapping[str, int],
    driver: str,
    slices: Sequence[str] = (),
    broadcast: int = 1,
    upload: int = 1,
) -> Counter[str]:
    """Bytes that each node itself puts into its object store in a round; see `received`."""
    nodes = Counter({driver: broadcast * BYTES * num_params})
    for node, count in trained.items():
        nodes[node] += count * upload * BYTES * num_params
    for node, part in zip(slices, cut(num_params, len(slices) or 1), strict=False):
        nodes[node] += upload * BYTES * (part.stop - part.start)
    return nodes


def stored() -> Counter[str]:
    """Bytes that the object store of each living node has made or received since it began."""
    return Counter(
        {
            node["NodeID"]: node_stats(
                node["NodeManagerAddress"], node["NodeManagerPort"], include_memory_info=False
            ).store_stats.cumulative_created_bytes
            for node in ray.nodes()
            if node["Alive"]
        }
    )
