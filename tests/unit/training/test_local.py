from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from fedvsr.algorithms.base import start
from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import Clip
from fedvsr.determinism import scoped_torch
from fedvsr.errors import UserError
from fedvsr.lookup import load
from fedvsr.messages import ClientTask
from fedvsr.params import FloatVector, flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.training.local import LocalTrainer
from fedvsr.training.requirements import require_room

TASK = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=5)


def train(config: ExperimentConfig, **local: Any) -> tuple[Any, FloatVector, FloatVector]:
    split = prepare_data(config, lambda *_: None)
    changed = config.local.model_copy(update=local)
    trainer = LocalTrainer(config.model, config.algorithm, changed)
    before = flatten(trainer.network)
    server = start(trainer.algorithm, before)
    shared = {name: server[name] for name in trainer.algorithm.broadcast}
    report, update = trainer.train(TASK, shared, {}, split.train[:2])
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
    losses = []
    for steps in (5, 60):
        with scoped_torch(0, 1):  # The same first network.
            losses.append(train(small, steps=steps, lr=5e-3)[0].loss)
    assert losses[1] < 0.95 * losses[0]


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
    machine = dict.fromkeys(
        (
            "train_s",
            "input_wait_s",
            "started_at",
            "energy_j",
            "gpu_memory_bytes",
            "gpu_utilisation",
        ),
        0,
    )
    first, second = (dataclasses.replace(report, **machine) for report in (first, second))
    assert first == second


@pytest.mark.parametrize("algorithm", ["fedvsr", "scaffold"])
def test_readers_change_no_bit(small: ExperimentConfig, algorithm: str) -> None:
    # SCAFFOLD's option I reads the round's samples twice.
    option = {"option": 1} if algorithm == "scaffold" else {}
    config = small.model_copy(
        update={"algorithm": load("fedvsr.algorithms", algorithm).Config(**option)}
    )
    runs = []
    for num_workers in (0, 1, 2):
        with scoped_torch(0, 1):  # The same first network.
            runs.append(train(config, num_workers=num_workers, random_reverse=True, steps=5))
    assert len({after.tobytes() for _, _, after in runs}) == 1
    for report, _, _ in runs:
        assert 0 < report.input_wait_s < report.train_s


def test_a_clip_that_cannot_be_read_says_so(small: ExperimentConfig) -> None:
    gone = Clip("gone-000", "gone", "nowhere", 4, 48, 64, 4)
    trainer = LocalTrainer(small.model, small.algorithm, small.local)
    with pytest.raises(UserError, match=r"^clip gone-000 is not at"):
        trainer.train(TASK, {"params": flatten(trainer.network)}, {}, [gone])


def test_a_loss_that_is_not_finite_names_client_step_and_setting(small: ExperimentConfig) -> None:
    split = prepare_data(small, lambda *_: None)
    trainer = LocalTrainer(small.model, small.algorithm, small.local)
    poisoned = np.full_like(flatten(trainer.network), np.nan)
    with pytest.raises(UserError, match=r"client 0 is nan in round 1, step 1; lower local\.lr"):
        trainer.train(TASK, {"params": poisoned}, {}, split.train)


def test_a_sample_must_fit_every_clip(small: ExperimentConfig) -> None:
    short = Clip("short-000", "short", "", 2, 100, 100, 4)
    with pytest.raises(UserError, match=r"frames = 3 is more than clip short-000 has \(2\); lower"):
        require_room([short], small.local)
    clip = Clip("narrow-000", "narrow", "", 4, 100, 28, 4)
    with pytest.raises(UserError, match=r"local\.crop = 32 is larger than clip narrow-000 \(28 x"):
        require_room([clip], small.local)
