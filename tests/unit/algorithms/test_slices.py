"""Slices of the vectors, combined apart, give the bits of the whole."""

from __future__ import annotations

import numpy as np
import pytest

from fedvsr import algorithms
from fedvsr.algorithms._robust import CHUNK
from fedvsr.algorithms.base import Aggregated, FedAvg, is_by_coordinate, start
from fedvsr.federation.aggregation import cut
from fedvsr.lookup import load, names
from fedvsr.messages import ClientReport, Round

# What needs all of a vector: distances and cosines, a mean; and `local` sends nothing.
WHOLE = {"fedmri", "krum", "fedsr", "fisher", "local"}
COUNT = 20


def build(name: str) -> FedAvg:
    return algorithms.build(load("fedvsr.algorithms", name).Config())


SLICED = [name for name in names("fedvsr.algorithms") if is_by_coordinate(build(name))]


def test_every_method_is_sliced_but_those_that_need_the_whole() -> None:
    assert set(names("fedvsr.algorithms")) - set(SLICED) == WHOLE


def test_a_method_that_overrides_aggregate_claims_nothing() -> None:
    class Mine(FedAvg):
        def aggregate(self, *arguments: object) -> Aggregated:  # type: ignore[override]
            return super().aggregate(*arguments)  # type: ignore[arg-type]

    class Weighted(FedAvg):
        def weights(self, *_: object) -> list[float]:  # type: ignore[override]
            return [1.0]

    config = build("fedavg").config
    assert not is_by_coordinate(Mine(config))
    assert is_by_coordinate(Weighted(config))


@pytest.mark.parametrize("num_slices", [1, 2, 7])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 17, 50, 1000, CHUNK + 1])
def test_slices_are_the_whole_and_about_equal(size: int, num_slices: int) -> None:
    parts = cut(size, num_slices)
    assert len(parts) == num_slices
    assert np.concatenate([np.arange(size)[part] for part in parts]).tolist() == [*range(size)]
    lengths = [part.stop - part.start for part in parts]
    assert max(lengths) - min(lengths) <= 31


@pytest.mark.parametrize("name", SLICED)
def test_bits_for_1_2_and_7_slices(name: str) -> None:
    algorithm, random = build(name), np.random.default_rng(1)
    # A chunk and one value: the whole and its slices end in chunks of different lengths.
    size = CHUNK + 1
    uploads = [
        {vector: random.standard_normal(size, np.float32) for vector in algorithm.upload}
        for _ in range(COUNT)
    ]
    reports = [
        ClientReport(
            *(i, 2, i + 1, 3, 0.1 + i, 0.1, 0.1, 0.2, 0.1, 2.0 + i, 1.0, 0.5),
            label_counts={"a": i, "b": 1},
        )
        for i in range(COUNT)
    ]
    weights = algorithm.weights(reports, 10)
    server = start(algorithm, random.standard_normal(size, np.float32))
    round_info = Round(2, 10, 20, COUNT, (slice(0, size),))
    whole = algorithm.aggregate(iter(uploads), weights, server, round_info)
    for num_slices in (1, 2, 7):
        got = [
            algorithm.aggregate(
                ({n: v[part] for n, v in upload.items()} for upload in uploads),
                weights,
                {n: server[n][part] for n in algorithm.broadcast},
                Round(2, 10, 20, COUNT, ()),
            )
            for part in cut(size, num_slices)
        ]
        assert all(each.weights == whole.weights for each in got)
        for vector, expected in whole.vectors.items():
            joined = np.concatenate([each.vectors[vector] for each in got])
            assert joined.tobytes() == expected.tobytes()
