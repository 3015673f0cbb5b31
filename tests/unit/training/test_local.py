from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import Clip
from fedvsr.errors import UserError
from fedvsr.experiment import prepare_data
from fedvsr.messages import ClientTask
from fedvsr.params import FloatVector, flatten
from fedvsr.training.local import LocalTrainer, require_room

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=5)


def train(config: ExperimentConfig, **local: Any) -> tuple[Any, FloatVector, FloatVector]:
    split = prepare_data(config, lambda *_: None)
    changed = config.local.model_copy(update=local)
    trainer = LocalTrainer(config.model, config.algorithm, changed)
    before = flatten(trainer.network)
    report, update = trainer.train(TASK, {"params": before}, {}, split.train[:2])
    after = update.upload["params"]
    return report, before, after


def test_a_pass_takes_every_sample_once(small: ExperimentConfig) -> None:
    # Two clips of four frames are eight samples: four steps of two.
    report, before, after = train(small, steps=None, epochs=1)
    assert (report.num_steps, report.num_samples) == (4, 8)
    assert np.isfinite(after).all()
    assert not np.array_equal(before, after)
    assert report.loss > report.vsr_loss > 0, "FedVSR adds its detail loss"
    report, _, _ = train(small, steps=None, epochs=2, batch_size=3)
    assert (report.num_steps, report.num_samples) == (6, 16), "the last batch of a pass holds two"
    report, _, _ = train(small, steps=9)
    assert report.num_steps == 9, "steps go on over as many passes as it takes"


def test_training_lowers_the_loss(small: ExperimentConfig) -> None:
    short, _, _ = train(small, steps=5, lr=5e-3)
    long, _, _ = train(small, steps=60, lr=5e-3)
    assert long.loss < 0.95 * short.loss


def test_equal_tasks_give_equal_bits_on_a_used_trainer(small: ExperimentConfig) -> None:
    split = prepare_data(small, lambda *_: None)
    trainer = LocalTrainer(small.model, small.algorithm, small.local)
    params = flatten(trainer.network)
    params.flags.writeable = False
    first, one = trainer.train(TASK, {"params": params}, {}, split.train[:2])
    update = one.upload["params"]
    trainer.train(dataclasses.replace(TASK, seed=6), one.upload, {}, split.train[2:])
    second, two = trainer.train(TASK, {"params": params}, {}, split.train[:2])
    again = two.upload["params"]
    assert update.tobytes() == again.tobytes()
    assert dataclasses.replace(first, train_s=0) == dataclasses.replace(second, train_s=0)


def test_a_loss_that_is_not_finite_names_client_step_and_setting(small: ExperimentConfig) -> None:
    split = prepare_data(small, lambda *_: None)
    trainer = LocalTrainer(small.model, small.algorithm, small.local)
    poisoned = np.full_like(flatten(trainer.network), np.nan)
    with pytest.raises(UserError, match=r"client 0 is nan in round 1, step 1; lower local\.lr"):
        trainer.train(TASK, {"params": poisoned}, {}, split.train)


def test_a_crop_must_fit_every_clip(small: ExperimentConfig) -> None:
    clip = Clip("narrow-000", "narrow", "", 4, 100, 28, 4)
    with pytest.raises(UserError, match=r"local\.crop = 32 is larger than clip narrow-000 \(28 x"):
        require_room([clip], small.local)
