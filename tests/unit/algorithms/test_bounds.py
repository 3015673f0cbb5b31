"""Centralized and local training: the bounds that federated training lies between."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from fedvsr import models
from fedvsr.algorithms import centralized
from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.federation.executors import (
    Clients,
    FaultKind,
    Pending,
    Scorer,
    SerialExecutor,
)
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import Scored
from fedvsr.inference.trained import find_trained
from fedvsr.messages import ClientTask
from fedvsr.params import FloatVector, flatten
from fedvsr.records import Results, load_results
from fedvsr.runs.events import RoundRecorded
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import create_run
from fedvsr.training.local import LocalTrainer
from tests.conftest import moving_texture, write_video


def run(config: ExperimentConfig, algorithm: str, out: Path) -> tuple[Path, Results]:
    settings = config.model_dump() | {"algorithm": {"name": algorithm}}
    changed = ExperimentConfig.model_validate(settings)
    split = prepare_data(changed, lambda *_: None)
    created = create_run(changed, out)
    events = list(execute(created, split, SerialExecutor))
    assert isinstance(events[-1], RoundRecorded)
    return created.folder, load_results(created.folder)


def test_centralized_is_one_client_with_a_cohorts_steps(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    folder, results = run(small, "centralized", tmp_path)
    assert results.runs["num_clients"].tolist() == [1]
    # Three rounds; two clients a round would have taken three steps each.
    assert results.clients["num_steps"].tolist() == [6, 6, 6]
    assert (folder / "model.safetensors").is_file()
    assert find_trained(str(folder), tmp_path).origin.endswith("finished")


@pytest.mark.parametrize(
    "settings",
    [
        {"optimizer": "adam"},
        {"optimizer": "sgd", "momentum": 0.9, "lr": 0.02},
        {"slow_params": ("extract",), "slow_factor": 0.5, "freeze_steps": 3},
    ],
)
def test_rounds_of_centralized_training_are_one_training(
    small: ExperimentConfig, settings: dict[str, object], tmp_path: Path
) -> None:
    """Four steps at once, and in two rounds, end in the same bits."""
    write_video(tmp_path / "square.mp4", moving_texture(num_frames=40, height=32, width=32))
    data = small.data.model_copy(update={"videos": (str(tmp_path / "square.mp4"),)})
    clips = prepare_data(small.model_copy(update={"data": data}), lambda *_: None).train[:1]
    # A whole clip is a sample: all batches are the same.
    fixed = {"augment": False, "crop": 32, "num_frames": 4, **settings}

    def train(rounds: int) -> FloatVector:
        local = small.local.model_copy(update={**fixed, "steps": 4 // rounds})
        trainer = LocalTrainer(small.model, centralized.Config(), local)
        params, state = start, dict[str, FloatVector]()
        for i in range(rounds):
            task = ClientTask(client_id=0, round_idx=i + 1, num_rounds=rounds, seed=1)
            _, update = trainer.train(task, {"params": params}, state, clips)
            params, state = update.upload["params"], update.state
        return params

    start = flatten(models.build_fresh(small.model))
    np.testing.assert_array_equal(train(2), train(1))


def test_local_scores_every_clients_own_network(small: ExperimentConfig, tmp_path: Path) -> None:
    folder, results = run(small, "local", tmp_path)
    rows = results.evaluations
    assert sorted(rows["client_id"].unique()) == [0, 1, 2, 3]
    assert not results.clients["upload_bytes"].any()
    # A client's score moves in the rounds in which it trained, and in no other.
    for client_id, own in rows.groupby("client_id"):
        trained = results.clients[results.clients["client_id"] == client_id]["round_idx"]
        moved = own.groupby("round_idx")["psnr_db"].mean().diff().fillna(0) != 0
        assert sorted(moved[moved].index) == sorted(trained)
    # The files have the networks that were scored.
    config = small.model_copy()
    split = prepare_data(config, lambda *_: None)
    last = rows[rows["round_idx"] == 3]
    for client_id in range(4):
        file = folder / "clients" / f"client-{client_id:05d}.safetensors"
        network = models.load_checkpoint(file)
        scores = (
            Evaluator(config.model, config.evaluation, split.test, split.test_sets)
            .score(flatten(network))
            .scores
        )
        wanted = last[last["client_id"] == client_id]["psnr_db"].tolist()
        assert [score.values["psnr_db"] for score in scores] == wanted
    assert results.runs["psnr_db"][0] == pytest.approx(last["psnr_db"].mean())
    with pytest.raises(UserError, match=r"a network per client.*client-00000"):
        find_trained(str(folder), tmp_path)


def test_a_pool_holds_every_clip_once(small: ExperimentConfig) -> None:
    clips = prepare_data(small, lambda *_: None).train
    dealt = [clips[:1], clips[1:3], clips[3:]]
    local = small.local.model_copy(update={"steps": None, "epochs": 2, "batch_size": 3})
    pool = Clients(small.model, small.algorithm, local, dealt).pooled(2)
    assert list(pool.clips[0]) == list(clips)
    # Frames 4, 8, and the rest by fours: steps of 3 samples, twice; two mean clients' worth.
    steps = [2 * -(-4 * n // 3) for n in (1, 2, len(clips) - 3)]
    assert pool.local.steps == round(2 * sum(steps) / 3)


class _SecondScorer:
    """A scorer whose every scoring takes a second, by its own account."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer, self.device_name = scorer, scorer.device_name

    def score(self, params: FloatVector, pictures: bool = True) -> Pending:
        return _Second(self._scorer.score(params, pictures).result())

    def take_faults(self) -> list[tuple[FaultKind, str]]:
        return []


@dataclass(frozen=True)
class _Second:
    scored: Scored

    def ready(self) -> bool:
        return True

    def result(self) -> Scored:
        return replace(self.scored, wall_s=1.0)


class _SecondExecutor(SerialExecutor):
    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        return _SecondScorer(super().start_scorer(make))


def test_a_scoring_that_clients_share_is_counted_once(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    settings = small.model_dump() | {"algorithm": {"name": "local"}}
    config = ExperimentConfig.model_validate(settings)
    created = create_run(config, tmp_path)
    list(execute(created, prepare_data(config, lambda *_: None), _SecondExecutor))
    rounds = load_results(created.folder).rounds
    # Before training all have one network; later those that have trained are scored again.
    assert rounds["evaluate_s"].tolist() == [1, *rounds["num_sampled"][1:]]
