"""Layouts: which values of a vector are shared, a client's own, or frozen."""

from __future__ import annotations

import numpy as np
import pytest

from fedvsr.layout import NOT_SHARED, Layout
from fedvsr.params import ParamTable

TABLE = ParamTable(("a", "b", "c", "d", "e"), ((2,), (1, 2), (1,), (3,), (2,)))
LAYOUT = Layout(TABLE, ("shared", "own", "frozen", "shared", "own"))
WHOLE = np.arange(10, dtype=np.float32)


def test_take_gives_the_values_of_a_role_in_their_order() -> None:
    assert LAYOUT.take(WHOLE, "shared").tolist() == [0, 1, 5, 6, 7]
    assert LAYOUT.take(WHOLE, "own").tolist() == [2, 3, 8, 9]
    assert LAYOUT.take(WHOLE, *NOT_SHARED).tolist() == [2, 3, 4, 8, 9]
    assert LAYOUT.table_of("shared").names == ("a", "d")
    assert LAYOUT.table_of("shared").slices() == (slice(0, 2), slice(2, 5))


def test_whole_is_the_inverse_of_take() -> None:
    shared, rest = LAYOUT.take(WHOLE, "shared"), LAYOUT.take(WHOLE, *NOT_SHARED)
    np.testing.assert_array_equal(LAYOUT.whole(shared, rest), WHOLE)
    changed = LAYOUT.whole(shared, rest, -LAYOUT.take(WHOLE, "own"))
    assert changed.tolist() == [0, 1, -2, -3, 4, 5, 6, 7, -8, -9]
    with pytest.raises(ValueError, match="6 values for 5 parameters"):
        LAYOUT.whole(np.zeros(6, np.float32), rest)


def test_what_is_shared_whole_is_not_copied() -> None:
    layout = Layout.shared(TABLE)
    assert layout.all_shared
    assert not LAYOUT.all_shared
    assert layout.take(WHOLE, "shared") is WHOLE
    assert layout.whole(WHOLE, layout.take(WHOLE, *NOT_SHARED)) is WHOLE
