"""Seeds by scope, so that no random draw depends on the number or the order of workers."""

from __future__ import annotations

import hashlib

import numpy as np


def derive_seed(root: int, *scope: str | int) -> int:
    """A seed in [0, 2**63) for one scope, e.g. `derive_seed(root, "client", client_id, round_idx)`.

    Scopes are hashed, not added, so neighbouring roots and indices share nothing.
    """
    digest = hashlib.sha256(repr((root, *scope)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def generator(root: int, *scope: str | int) -> np.random.Generator:
    """A NumPy generator of its own for one scope."""
    return np.random.default_rng(derive_seed(root, *scope))
