"""What every algorithm and every network must do; `fedvsr check` and the tests both ask it here.

A contract is a function of what is checked and a folder for samples. It raises `BrokenError`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class BrokenError(AssertionError):
    """A contract does not hold; the message says in one line what was found."""


def require(holds: bool, found: str) -> None:
    """Check a part of a contract.

    Raises:
        BrokenError: it does not hold.
    """
    if not holds:
        raise BrokenError(found)


def require_close(
    got: npt.ArrayLike, expected: npt.ArrayLike, what: str, rtol: float = 0, atol: float = 0
) -> None:
    """Check that numbers are equal but for `atol + rtol * abs(expected)`.

    Raises:
        BrokenError: they are not.
    """
    got, expected = np.asarray(got), np.asarray(expected)
    require(got.shape == expected.shape, f"{what}: shape {got.shape}, not {expected.shape}")
    apart = float(np.max(np.abs(got - expected) - rtol * np.abs(expected), initial=0))
    require(bool(apart <= atol), f"{what}: {apart:.3g} apart")
