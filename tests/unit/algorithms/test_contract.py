"""The contract of every algorithm. A new file in the folder is tested as soon as it exists."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from fedvsr import algorithms
from fedvsr.algorithms.base import FedAvg
from fedvsr.contracts.algorithm import CONTRACTS
from fedvsr.lookup import load, names
from tests.conftest import MakeOnce


@pytest.fixture(params=names("fedvsr.algorithms"))
def algorithm(request: pytest.FixtureRequest) -> FedAvg:
    return algorithms.build(load("fedvsr.algorithms", request.param).Config())


@pytest.mark.parametrize("contract", CONTRACTS, ids=lambda contract: contract.__name__)
def test_contract(
    contract: Callable[[FedAvg, Path], None], algorithm: FedAvg, make_once: MakeOnce
) -> None:
    contract(algorithm, make_once("contracts", lambda _: None))


def test_pickles(algorithm: FedAvg) -> None:
    copy = pickle.loads(pickle.dumps(algorithm))
    assert copy.config == algorithm.config
