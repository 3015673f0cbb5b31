from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from fedvsr.params import ParamTable, flatten, join_tensors, load_flat, weighted_sum


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.register_buffer("mean", torch.tensor([0.5]))
        self.register_buffer("index", torch.tensor([7, 8]))


def test_round_trip_moves_parameters_and_leaves_buffers() -> None:
    net, other = Net(), Net()
    vector = flatten(net)
    assert vector.dtype == np.float32
    assert ParamTable.of(net).names == ("layer.weight", "layer.bias")
    assert vector.shape == (ParamTable.of(net).size,) == (8,)
    vector.flags.writeable = False
    load_flat(other, vector)
    np.testing.assert_array_equal(flatten(other), vector)
    views = ParamTable.of(net).views(vector)
    np.testing.assert_array_equal(views["layer.weight"], net.layer.weight.detach().numpy())
    assert views["layer.bias"].base is not None, "views must not copy"


def test_slices_are_where_the_views_are() -> None:
    table = ParamTable(("a.weight", "a.bias", "b"), ((2, 3), (2,), ()))
    assert table.slices() == (slice(0, 6), slice(6, 8), slice(8, 9))
    vector = np.arange(9, dtype=np.float32)
    for part, view in zip(table.slices(), table.views(vector).values(), strict=True):
        np.testing.assert_array_equal(vector[part], view.reshape(-1))


def test_a_vector_is_a_copy() -> None:
    net = Net()
    vector = flatten(net)
    before = vector.copy()
    with torch.no_grad():
        net.layer.weight.add_(1)
    np.testing.assert_array_equal(vector, before)


def test_joining_accepts_any_layout_and_float_dtype() -> None:
    wide = torch.arange(6.0).reshape(2, 3).requires_grad_()
    joined = join_tensors([wide.T, torch.tensor(7.0, dtype=torch.float64), torch.ones(2).half()])
    assert joined.dtype == np.float32
    np.testing.assert_array_equal(joined, [0, 3, 1, 4, 2, 5, 7, 1, 1])


def test_loading_keeps_a_parameters_memory_and_layout() -> None:
    net = nn.Conv2d(2, 2, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    vector = np.arange(ParamTable.of(net).size, dtype=np.float32)
    vector.flags.writeable = False
    address, strides = net.weight.data_ptr(), net.weight.stride()
    load_flat(net, vector)
    assert (net.weight.data_ptr(), net.weight.stride()) == (address, strides)
    np.testing.assert_array_equal(flatten(net), vector)


def test_mismatch_names_the_first_tensor() -> None:
    table, other = ParamTable.of(Net()), ParamTable.of(nn.Linear(3, 2))
    with pytest.raises(ValueError, match=r"tensor 0 is weight \[2, 3\] there and layer\.weight"):
        table.require_equal(other, "the saved parameters")
    with pytest.raises(ValueError, match="8 parameters"):
        load_flat(Net(), np.zeros(9, np.float32))


def test_weighted_sum_is_in_order_and_spans_chunks() -> None:
    rng = np.random.default_rng(0)
    vectors = [rng.standard_normal((1 << 20) + 5).astype(np.float32) for _ in range(3)]
    weights = [0.2, 0.3, 0.5]
    expected = np.zeros_like(vectors[0])
    for weight, vector in zip(weights, vectors, strict=True):
        expected += np.float32(weight) * vector
    np.testing.assert_array_equal(weighted_sum(iter(vectors), weights), expected)
    # 1e8 + 1 - 1e8 is 0 or 1 in float32, by the order of the sum.
    big, one = np.full(1, 1e8, np.float32), np.ones(1, np.float32)
    assert weighted_sum([big, one, -big], [1, 1, 1]) == 0
    assert weighted_sum([big, -big, one], [1, 1, 1]) == 1
    # A sum starts from +0, so it never holds -0.
    assert not np.signbit(weighted_sum([-np.zeros(1, np.float32)], [1]))
    with pytest.raises(ValueError, match="more than 2 sets of vectors for 2 weights"):
        weighted_sum(vectors, weights[:2])
    with pytest.raises(ValueError, match="needs at least one vector"):
        weighted_sum([], [])
