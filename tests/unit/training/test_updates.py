from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.errors import UserError
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate
from fedvsr.params import FloatVector, flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.training.local import LocalTrainer
from fedvsr.training.updates import UpdateConfig, incoming, outgoing, to_int8, to_top_k

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=5)


def vector(*values: float) -> FloatVector:
    return np.array(values, np.float32)


def train(
    config: ExperimentConfig, lr: float = 1e-3, **update: Any
) -> tuple[FloatVector, ClientReport, ClientUpdate]:
    local = config.local.model_copy(update={"lr": lr})
    torch.manual_seed(0)
    trainer = LocalTrainer(config.model, config.algorithm, local, UpdateConfig(**update))
    params = flatten(trainer.network)
    clips = prepare_data(config, lambda *_: None).train[:2]
    return params, *trainer.train(TASK, {"params": params}, {}, clips)


def test_int8_is_within_half_a_step_of_its_block() -> None:
    x = np.random.default_rng(0).standard_normal(3000).astype(np.float32)
    x[2100] = 1000
    packed = to_int8(x)
    assert packed.nbytes == 3000 + 3 * 4
    error = np.abs(packed.unpack() - x)
    for begin in range(0, 3000, 1024):
        block = slice(begin, begin + 1024)
        step = np.abs(x[block]).max() / 127
        assert error[block].max() <= 0.5001 * step
    # The outlier coarsens its own block alone.
    assert error[:2048].max() < 0.02
    assert not to_int8(np.zeros(5, np.float32)).unpack().any()


def test_top_k_keeps_the_largest() -> None:
    packed = to_top_k(vector(0.1, -5, 0.2, 3, -0.3), 0.4)
    assert packed.indices.tolist() == [1, 3]
    assert packed.unpack().tolist() == [0, -5, 0, 3, 0]
    assert packed.nbytes == 2 * 8
    assert to_top_k(vector(1, 2, 3), 0.01).values.tolist() == [3], "at least one"
    x = vector(3, 1, 2)
    np.testing.assert_array_equal(to_top_k(x, 1).unpack(), x)


def test_clipping_scales_longer_updates() -> None:
    # (3, 4) has norm 5: a bound of 2.5 halves it, bounds of 5 and more keep it.
    begin = vector(1, 1)
    for norm, expected in ((2.5, (2.5, 3)), (5, (4, 5)), (9, (4, 5))):
        sent, residual = outgoing(vector(4, 5), begin, None, UpdateConfig(clip_norm=norm))
        np.testing.assert_allclose(incoming(sent, begin), expected, rtol=1e-6)
        assert residual is None
    same, _ = outgoing(begin, begin, None, UpdateConfig(clip_norm=1))
    np.testing.assert_array_equal(incoming(same, begin), begin)


def test_what_compression_leaves_out_is_added_to_the_next_update() -> None:
    config = UpdateConfig(compression="top_k", top_k=0.5)
    begin = np.zeros(2, np.float32)
    sent, residual = outgoing(vector(3, 2), begin, None, config)
    assert incoming(sent, begin).tolist() == [3, 0]
    assert residual is not None
    assert residual.tolist() == [0, 2]
    # The changes are now 1 and 1 + 2, so the second is sent.
    sent, residual = outgoing(vector(1, 1), begin, residual, config)
    assert incoming(sent, begin).tolist() == [0, 3]
    assert residual is not None
    assert residual.tolist() == [1, 0]
    forgetful = UpdateConfig(compression="top_k", top_k=0.5, error_feedback=False)
    assert outgoing(vector(3, 2), begin, None, forgetful)[1] is None


@pytest.mark.parametrize(
    ("settings", "part"),
    [({}, 1.0), ({"compression": "int8"}, 0.26), ({"compression": "top_k", "top_k": 0.1}, 0.21)],
)
def test_a_client_sends_what_its_report_says(
    small: ExperimentConfig, settings: dict[str, Any], part: float
) -> None:
    begin, report, update = train(small, **settings)
    assert report.upload_bytes == update.upload["params"].nbytes
    assert report.upload_bytes <= part * begin.nbytes
    assert set(update.state) == ({"residual"} if settings else set())
    plain = train(small)[2].upload["params"]
    arrived = incoming(update.upload["params"], begin)
    if settings:
        # What arrived plus the residual is the whole update.
        np.testing.assert_allclose(arrived + update.state["residual"], plain, atol=1e-6)
        assert np.linalg.norm(arrived - plain) < 0.9 * np.linalg.norm(begin - plain)
    else:
        np.testing.assert_array_equal(arrived, plain)


def test_a_client_that_diverges_stops_the_run_or_is_rejected(small: ExperimentConfig) -> None:
    with pytest.raises(UserError, match=r"leave such clients out by update\.reject_nonfinite"):
        train(small, lr=1e30)
    _, report, update = train(small, lr=1e30, reject_nonfinite=True)
    assert not report.finite
    assert (update.upload, update.state, report.upload_bytes) == ({}, {}, 0)


def test_an_infinite_last_step_is_refused(small: ExperimentConfig) -> None:
    config = small.model_copy(update={"local": small.local.model_copy(update={"steps": 1})})
    trainer = LocalTrainer(config.model, config.algorithm, config.local)
    params = flatten(trainer.network)
    clips = prepare_data(config, lambda *_: None).train[:2]
    trainer.network.to_pixels.weight.register_hook(lambda grad: grad + float("inf"))
    with pytest.raises(UserError, match="the update of client 0 is not finite in round 1"):
        trainer.train(TASK, {"params": params}, {}, clips)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["update.noise_multiplier=1"], "needs update.clip_norm"),
        (
            ["update.noise_multiplier=1", "update.clip_norm=1", "update.compression=int8"],
            "cannot be combined with update.noise_multiplier",
        ),
        (["update.clip_norm=1", "algorithm.name=local"], "sends no updates"),
        (["algorithm.name=krum"], "need at least 5 clients a round, not 2"),
        (
            [
                "algorithm={name: krum, num_byzantine: 0}",
                "federation.clients_per_round=4",
                "federation.upload_failure_probability=0.1",
            ],
            "leaves single updates in some rounds, too few for algorithm.name = krum; leave one",
        ),
        (["update.compression=int8", "algorithm.name=centralized"], "sends no updates"),
    ],
)
def test_settings_that_contradict_are_refused(
    small_yaml: Any, settings: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        load_config(str(small_yaml), settings)
