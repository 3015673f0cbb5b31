"""The bytes of a round, by hand."""

from __future__ import annotations

from tests.benchmarks.traffic import received


def test_the_driver_receives_all_updates_if_it_combines_them() -> None:
    # 100 values of 4 bytes. Two of the three updates come from b, which gets the parameters.
    got = received(100, {"a": 1, "b": 2}, driver="a")
    assert got == {"b": 400, "a": 800}


def test_nodes_receive_slices_and_the_driver_the_sum() -> None:
    # Slices of 48 and 52 values. a gets both updates of b and c, b those of a and c.
    got = received(100, {"a": 1, "b": 1, "c": 1}, driver="d", slices=["a", "b"], upload=2)
    assert got == {
        "a": 400 + 2 * 2 * 4 * 48,
        "b": 400 + 2 * 2 * 4 * 52,
        "c": 400,
        "d": 2 * 400,
    }
