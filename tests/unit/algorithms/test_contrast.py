"""MOON and FedSR: contrast of features, and FedSR's tensors."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from fedvsr import models
from fedvsr.algorithms import fedavg, fedsr, moon
from fedvsr.algorithms.base import Batch
from fedvsr.config import ExperimentConfig
from fedvsr.losses import contrast
from fedvsr.messages import ClientTask, Round
from fedvsr.models import tiny
from fedvsr.params import FloatVector, flatten, load_flat
from fedvsr.runs.launch import prepare_data
from fedvsr.section import NamedSection
from fedvsr.training.features import with_features
from fedvsr.training.local import LocalTrainer

TASK = ClientTask(client_id=0, round_idx=2, num_rounds=3, seed=5)


def batch(**features: list[list[float]]) -> Batch:
    """One frame of one flat clip; features are two pixels of two channels."""
    gt = torch.zeros(1, 1, 3, 4, 8)
    pixels = {n: torch.tensor(f).T.reshape(1, 2, 1, 2) for n, f in features.items()}
    return Batch(torch.tensor(2.0), gt, gt, pixels)


def test_moon_by_hand() -> None:
    # Means over the frame: z = (1, 0), z_glob = (0, 3), z_prev = (2, 0); cosines 0 and 1, tau 0.5:
    # -log(e^0 / (e^0 + e^2)) = log(1 + e^2).
    one_frame = batch(
        local=[[2.0, 1.0], [0.0, -1.0]],
        **{"global": [[1.0, 3.0], [-1.0, 3.0]]},
        previous=[[2.0, 0.0], [2.0, 0.0]],
    )
    algorithm = moon.Algorithm(moon.Config(lambda_con=0.1))
    expected = 2 + 0.1 * math.log(1 + math.exp(2))
    assert algorithm.local_loss(one_frame).item() == pytest.approx(expected, rel=1e-6)
    assert algorithm.local_loss(batch()).item() == 2, "a first round has nothing to compare with"


def test_fedsr_looks_where_the_detail_is() -> None:
    one_frame = batch(
        local=[[1.0, 0.0], [0.0, 1.0]],
        **{"global": [[1.0, 0.0], [1.0, 0.0]]},
        previous=[[0.0, 1.0], [0.0, 1.0]],
    )
    algorithm = fedsr.Algorithm(fedsr.Config(lambda_con=1, temperature=0.5))

    def contrast_term(left: float, right: float) -> float:
        """The term if the halves of the ground truth are checkerboards of these amplitudes."""
        board = torch.tensor([[1.0, -1.0], [-1.0, 1.0]]).repeat(2, 2)
        gt = torch.cat((left * board, right * board), dim=1).expand(1, 1, 3, 4, 8)
        return algorithm.local_loss(dataclasses.replace(one_frame, gt=gt)).item() - 2

    # All detail on the left: z is the left pixel, which sees what the global network sees.
    assert contrast_term(1, 0) == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-4)
    assert contrast_term(0, 1) == pytest.approx(math.log(1 + math.exp(2)), rel=1e-4)
    # Twice the amplitude, twice the weight: z = (2, 1) / 3, cosines 2 / sqrt(5) and 1 / sqrt(5).
    assert contrast_term(2, 1) == pytest.approx(math.log(1 + math.exp(-2 / math.sqrt(5))), rel=1e-4)
    # Equal detail, or none: the plain mean (0.5, 0.5), equally close to both.
    assert contrast_term(1, 1) == pytest.approx(math.log(2), rel=1e-5)
    assert contrast_term(0, 0) == pytest.approx(math.log(2), rel=1e-5)


def test_fedsr_weighs_each_tensor_by_its_similarity_to_the_past() -> None:
    # First tensor, past (1, 0): cosines 1 and 0, so weights e / (1 + e) and 1 / (1 + e). Second
    # tensor: the past is zero, so all weights are equal.
    algorithm = fedsr.Algorithm(fedsr.Config())
    server = {"params": np.array([1, 0, 0], np.float32)}
    uploads = [{"params": np.array(w, np.float32)} for w in ([3, 0, 6], [0, 4, 0])]
    later = Round(2, 10, 4, 2, (slice(0, 2), slice(2, 3)))
    params = algorithm.aggregate(uploads, [0.9, 0.1], server, later).vectors["params"]
    share = math.e / (1 + math.e)
    np.testing.assert_allclose(params, [share * 3, (1 - share) * 4, 3], rtol=1e-6)
    first = dataclasses.replace(later, round_idx=1)
    params = algorithm.aggregate(uploads, [0.9, 0.1], server, first).vectors["params"]
    np.testing.assert_allclose(params, [2.7, 0.4, 5.4], rtol=1e-6)


@pytest.mark.parametrize("kind", [moon, fedsr])
def test_training_is_pulled_to_the_global_network(small: ExperimentConfig, kind: Any) -> None:
    clips = prepare_data(small, lambda *_: None).train[:2]
    local = small.local.model_copy(update={"optimizer": "sgd", "lr": 0.05, "steps": 6})

    def train(algorithm: NamedSection, state: dict[str, FloatVector]) -> FloatVector:
        trainer = LocalTrainer(small.model, algorithm, local)
        update = trainer.train(TASK, shared, state, clips)[1]
        if "params" in update.state:
            np.testing.assert_array_equal(update.state["params"], update.upload["params"])
        return update.upload["params"]

    def contrasted(params: FloatVector) -> float:
        """The contrast, which the algorithms lower, on clips of noise."""
        lq = torch.rand(1, 3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        z = []
        for vector in (params, shared["params"], state["params"]):
            load_flat(network, vector)
            with torch.no_grad():
                z.append(with_features(network, "to_pixels", lq)[1].mean(dim=(2, 3)))
        return contrast(*z, temperature=0.5).item()

    network = models.build_fresh(small.model)
    shared = {"params": flatten(network) + np.float32(0.02)}
    state = {"params": np.random.default_rng(0).normal(0, 0.2, shared["params"].size)}
    state["params"] = state["params"].astype(np.float32)
    plain = train(fedavg.Config(), {})
    np.testing.assert_array_equal(train(kind.Config(), {}), plain)
    np.testing.assert_array_equal(train(kind.Config(lambda_con=0), state), plain)
    pulled = train(kind.Config(lambda_con=1.0, temperature=0.5), state)
    assert not np.array_equal(pulled, plain)
    assert contrasted(pulled) < 0.9 * contrasted(plain)


def test_a_network_without_features_is_refused(
    small: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    bare = dataclasses.replace(tiny.spec(small.model), features=None)
    monkeypatch.setattr(tiny, "spec", lambda _: bare)
    settings = small.model_dump()
    ExperimentConfig.model_validate(settings)
    with pytest.raises(
        ValidationError, match=r"algorithm\.name = moon contrasts .* tiny declares none"
    ):
        ExperimentConfig.model_validate(settings | {"algorithm": {"name": "moon"}})
