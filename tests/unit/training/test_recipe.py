"""Settings of local training that recipes use: each does what its description says."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch

from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.messages import ClientTask
from fedvsr.params import FloatVector, ParamTable, flatten
from fedvsr.runs.launch import prepare_data
from fedvsr.training.config import LocalConfig
from fedvsr.training.local import LocalTrainer
from fedvsr.training.optimiser import learning_rate

FIRST = ClientTask(client_id=0, round_idx=1, num_rounds=4, seed=5)


def train(
    config: ExperimentConfig, task: ClientTask = FIRST, **local: Any
) -> tuple[dict[str, FloatVector], dict[str, FloatVector]]:
    """Named parameters before and after."""
    clips = prepare_data(config, lambda *_: None).train[:2]
    changed = LocalConfig(**{**config.local.model_dump(), **local})
    torch.manual_seed(0)
    trainer = LocalTrainer(config.model, config.algorithm, changed)
    table, before = ParamTable.of(trainer.network), flatten(trainer.network)
    # The last layer starts at zero, so without this no other layer would have a gradient.
    before += np.float32(0.01)
    _, update = trainer.train(task, {"params": before}, {}, clips)
    after = update.upload["params"]
    return table.views(before), table.views(after)


def moved(config: ExperimentConfig, task: ClientTask = FIRST, **local: Any) -> dict[str, float]:
    """The largest change of each tensor."""
    before, after = train(config, task, **local)
    return {name: float(np.abs(after[name] - before[name]).max()) for name in before}


def test_one_step_of_sgd_is_minus_lr_times_gradient(small: ExperimentConfig) -> None:
    one = {"optimizer": "sgd", "steps": 1, "momentum": 0.0}
    before, single = train(small, **one, lr=1e-3)
    _, double = train(small, **one, lr=2e-3)
    for name in before:
        step = single[name] - before[name]
        np.testing.assert_allclose(double[name] - before[name], 2 * step, rtol=1e-2, atol=1e-7)
    # Weight decay adds its own term: w - lr * decay * w.
    _, decayed = train(small, **one, lr=1e-3, weight_decay=1.0)
    for name in before:
        np.testing.assert_allclose(
            decayed[name], single[name] - 1e-3 * before[name], rtol=1e-4, atol=1e-7
        )


def test_adams_first_step_is_lr_whatever_the_gradient(small: ExperimentConfig) -> None:
    steps = moved(small, steps=1, lr=1e-3)
    assert max(steps.values()) == pytest.approx(1e-3, rel=1e-2)
    adam, adamw = (
        train(small, steps=1, lr=1e-3, weight_decay=0.5, optimizer=kind)[1]
        for kind in ("adam", "adamw")
    )
    assert any(not np.array_equal(adam[name], adamw[name]) for name in adam)


def test_slow_parameters_take_smaller_steps(small: ExperimentConfig) -> None:
    steps = moved(small, steps=1, lr=1e-3, slow_params=("cell",), slow_factor=0.125)
    for name, step in steps.items():
        assert step == pytest.approx(1.25e-4 if "cell" in name else 1e-3, rel=2e-2), name


def test_frozen_parameters_stay_until_freeze_steps_are_over(small: ExperimentConfig) -> None:
    frozen = {"slow_params": ("cell",), "freeze_steps": 5, "steps": 3}
    steps = moved(small, **frozen)
    assert all((step == 0) == ("cell" in name) for name, step in steps.items())
    # The second round begins at step 3, so its third step is the first that moves them.
    second = dataclasses.replace(FIRST, round_idx=2)
    steps = moved(small, second, **frozen, lr=1e-3)
    assert all(step > 0 for step in steps.values())
    steps = moved(small, second, **{**frozen, "steps": 2}, lr=1e-3)
    assert all((step == 0) == ("cell" in name) for name, step in steps.items())


def test_a_trainer_freezes_again_for_an_earlier_round(small: ExperimentConfig) -> None:
    clips = prepare_data(small, lambda *_: None).train[:2]
    local = LocalConfig(
        **{**small.local.model_dump(), "slow_params": ["cell"], "freeze_steps": 3, "steps": 3}
    )
    trainer = LocalTrainer(small.model, small.algorithm, local)
    params = flatten(trainer.network)
    _, first = trainer.train(FIRST, {"params": params}, {}, clips)
    trainer.train(dataclasses.replace(FIRST, round_idx=2), {"params": params}, {}, clips)
    _, second = trainer.train(FIRST, {"params": params}, {}, clips)
    assert first.upload["params"].tobytes() == second.upload["params"].tobytes()


def test_unknown_slow_parameters_are_refused(small: ExperimentConfig) -> None:
    local = small.local.model_copy(update={"slow_params": ("spynet",)})
    with pytest.raises(UserError, match=r"slow_params: 'spynet' is in no parameter of tiny"):
        LocalTrainer(small.model, small.algorithm, local)


def test_cosine_runs_from_lr_to_min_lr_over_all_rounds(small: ExperimentConfig) -> None:
    local = LocalConfig(lr=1e-3, min_lr=1e-5, schedule="cosine")
    assert learning_rate(local, 0) == 1e-3
    assert learning_rate(local, 0.5) == pytest.approx((1e-3 + 1e-5) / 2)
    assert learning_rate(local, 1) == pytest.approx(1e-5)
    assert learning_rate(LocalConfig(lr=1e-3), 0.9) == 1e-3
    # Round 3 of 4 with one step a round is halfway.
    third = dataclasses.replace(FIRST, round_idx=3)
    steps = moved(small, third, steps=1, lr=1e-3, min_lr=1e-5, schedule="cosine")
    assert max(steps.values()) == pytest.approx(5.05e-4, rel=2e-2)


def test_mirrored_samples_reach_the_network_whole(
    small: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    clips = prepare_data(small, lambda *_: None).train[:2]
    local = small.local.model_copy(update={"mirror": True, "steps": 1})
    trainer = LocalTrainer(small.model, small.algorithm, local)
    hook = trainer.network.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    trainer.train(FIRST, {"params": flatten(trainer.network)}, {}, clips)
    hook.remove()
    assert seen[0].shape[1] == 2 * local.num_frames
    assert torch.equal(seen[0], seen[0].flip(1))
    assert not torch.equal(seen[0][:, 0], seen[0][:, 1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_lower_precision_learns_nearly_the_same(small: ExperimentConfig, precision: str) -> None:
    before, exact = train(small, optimizer="sgd", lr=1e-2, steps=3)
    _, rough = train(small, optimizer="sgd", lr=1e-2, steps=3, precision=precision)
    exact_step = np.concatenate([(exact[n] - before[n]).ravel() for n in before])
    rough_step = np.concatenate([(rough[n] - before[n]).ravel() for n in before])
    assert not np.array_equal(exact_step, rough_step)
    error = np.linalg.norm(exact_step - rough_step) / np.linalg.norm(exact_step)
    assert error < 0.1
    assert all(value.dtype == np.float32 for value in rough.values())


def test_fp16_scales_the_loss(small: ExperimentConfig) -> None:
    # A gradient of 1e-9 vanishes in half precision, whose smallest number is 6e-8.
    algorithm = small.algorithm.model_copy(update={"lambda_vsr": 1e-7, "lambda_hifr": 0.0})
    config = small.model_copy(update={"algorithm": algorithm})
    steps = moved(config, steps=1, lr=1e-3, precision="fp16")
    assert sum(step > 1e-4 for step in steps.values()) > len(steps) / 2


@pytest.mark.slow
def test_a_compiled_network_learns_nearly_the_same(small: ExperimentConfig) -> None:
    before, eager = train(small, optimizer="sgd", lr=1e-2, steps=3)
    _, compiled = train(small, optimizer="sgd", lr=1e-2, steps=3, compile=True)
    for name in before:
        np.testing.assert_allclose(compiled[name], eager[name], rtol=1e-3, atol=1e-6)


def test_recipes_of_the_published_option_files() -> None:
    from fedvsr.models import basicvsrpp, iart, rvrt, vrt

    recipes = [
        LocalConfig(**config.recipe()["local"])
        for config in (
            vrt.Config(),
            vrt.Config(size="paper_6frames"),
            rvrt.Config(),
            iart.Config(),
            basicvsrpp.Config(),
        )
    ]
    assert [r.num_frames for r in recipes] == [16, 6, 30, 16, 30]
    assert [r.lr for r in recipes] == [4e-4, 4e-4, 4e-4, 2e-4, 1e-4]
    assert [r.slow_factor for r in recipes] == [0.125, 0.125, 0.25, 0.125, 0.25]
    assert [r.freeze_steps for r in recipes] == [20_000, 20_000, 30_000, 5_000, 5_000]
    assert {(r.betas, r.crop, r.optimizer, r.weight_decay) for r in recipes} == {
        ((0.9, 0.99), 256, "adam", 0.0)
    }
    assert math.isclose(vrt.spec(vrt.Config()).charbonnier_eps, 1e-9)
    assert math.isclose(iart.spec(iart.Config()).charbonnier_eps, 1e-12)
    assert math.isclose(basicvsrpp.spec(basicvsrpp.Config()).charbonnier_eps, 1e-12)
