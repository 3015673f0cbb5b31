"""How far weights are from uniform ones, and FedVSR's mixture of both."""

from __future__ import annotations

import math
from collections.abc import Sequence


def hellinger_from_uniform(weights: Sequence[float]) -> float:
    """Hellinger distance of K weights, whose sum is 1, from uniform ones; in [0, 1)."""
    uniform = 1 / len(weights)
    squares = math.fsum((math.sqrt(uniform) - math.sqrt(p)) ** 2 for p in weights)
    return math.sqrt(0.5 * squares)


def mix_by_hellinger(weights: Sequence[float], threshold: float) -> list[float]:
    """Mix weights p with uniform ones u: `(1 - m) u + m p`.

    `m = max(0, h - threshold) / (1 - threshold)`, where h is the Hellinger distance of p and u.
    This is from the published form of FedVSR. At its threshold of 0.05, the result is uniform if
    the weights' relative spread is below about 14 %.
    """
    uniform = 1 / len(weights)
    share = max(0.0, hellinger_from_uniform(weights) - threshold) / (1 - threshold)
    return [(1 - share) * uniform + share * p for p in weights]
