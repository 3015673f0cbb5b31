"""Rounds in which a part of the network is trained, shared or kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from fedvsr import models
from fedvsr.algorithms import fedavg, moon
from fedvsr.config import ExperimentConfig
from fedvsr.federation.executors import SerialExecutor
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.trained import find_trained
from fedvsr.layout import NOT_SHARED
from fedvsr.messages import ClientTask
from fedvsr.params import flatten
from fedvsr.records import Results, load_results
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import Run, create_run
from fedvsr.training.local import LocalTrainer

HEAD = {"to_pixels.weight", "to_pixels.bias"}


def changed(config: ExperimentConfig, **sections: dict[str, Any]) -> ExperimentConfig:
    settings = config.model_dump()
    for name, values in sections.items():
        settings[name] = {**settings[name], **values}
    return ExperimentConfig.model_validate(settings)


def run(config: ExperimentConfig, out: Path, rounds: int | None = None) -> tuple[Run, Results]:
    """Run; or as far as `rounds`, and then the rest in another process's place."""
    split, created = prepare_data(config, lambda *_: None), create_run(config, out)
    events = execute(created, split, SerialExecutor)
    if rounds is not None:
        for event in events:
            if getattr(event, "round_idx", 0) == rounds and hasattr(event, "scores"):
                break
        events.close()  # type: ignore[attr-defined]
        events = execute(created, split, SerialExecutor)
    list(events)
    return created, load_results(created.folder)


def test_only_what_is_trained_travels_and_all_is_saved(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    done, results = run(changed(small, local={"train": ["head"]}), tmp_path)
    total, shared = (int(results.runs[f"num_{n}params"][0]) for n in ("", "shared_"))
    saved = load_file(done.folder / "model.safetensors")
    head = sum(saved[name].size for name in HEAD)
    assert (total, shared) == (sum(t.size for t in saved.values()), head)
    assert set(results.clients["upload_bytes"]) == {4 * head}
    per_client = results.rounds["download_bytes"][1:] / results.rounds["num_sampled"][1:]
    assert set(per_client) == {4 * head}
    found = find_trained(str(done.folder), tmp_path)
    assert found.origin.endswith("finished")


def test_frozen_parameters_keep_their_values_and_shared_ones_move(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    one = changed(small, local={"train": ["head"]}, federation={"num_rounds": 1})
    two = changed(small, local={"train": ["head"]}, federation={"num_rounds": 2})
    after = [load_file(run(c, tmp_path)[0].folder / "model.safetensors") for c in (one, two)]
    for name, tensor in after[0].items():
        assert np.array_equal(tensor, after[1][name]) == (name not in HEAD), name


def test_clients_keep_their_part_and_are_scored_with_it(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    config = changed(small, algorithm={"keep": ["head"]})
    done, results = run(config, tmp_path)
    files = sorted((done.folder / "clients").glob("*.safetensors"))
    networks = [load_file(path) for path in files]
    trained = set(results.clients["client_id"])
    assert len(networks) == config.data.num_clients > 1
    for name in networks[0]:
        values = {network[name].tobytes() for network in networks}
        # Clients that never trained have the first values in common.
        own = len(trained) + (len(trained) < len(networks))
        assert len(values) == (own if name in HEAD else 1), name
    assert set(results.evaluations["client_id"]) == set(range(len(networks)))
    assert not (done.folder / "model.safetensors").exists()
    # The files have the networks that were scored: the shared part moves in every round.
    last = results.evaluations[results.evaluations["round_idx"] == config.federation.num_rounds]
    test = prepare_data(config, lambda *_: None)
    evaluator = Evaluator(config.model, config.evaluation, test.test, test.test_sets)
    for client_id, path in enumerate(files):
        scored = evaluator.score(flatten(models.load_checkpoint(path))).scores
        wanted = last[last["client_id"] == client_id]["psnr_db"].tolist()
        assert [score.values["psnr_db"] for score in scored] == wanted


def test_a_stopped_run_with_parts_ends_in_the_same_bits(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    parts = {"algorithm": {"keep": ["head"]}, "local": {"train": ["decoder", "encoder"]}}
    config = changed(small, **parts)
    whole, _ = run(config, tmp_path / "whole")
    stopped, _ = run(config, tmp_path / "stopped", rounds=1)
    for path in (whole.folder / "clients").glob("*.safetensors"):
        assert path.read_bytes() == (stopped.folder / "clients" / path.name).read_bytes()


def test_a_clients_round_begins_from_the_shared_part_and_its_own(small: ExperimentConfig) -> None:
    clips = prepare_data(small, lambda *_: None).train[:1]
    trainer = LocalTrainer(small.model, fedavg.Config(keep=("head",)), small.local)
    layout, shared = trainer.layout, {"params": trainer.parameters.values()}
    task = ClientTask(client_id=0, round_idx=1, num_rounds=2, seed=1)
    _, first = trainer.train(task, shared, {}, clips)
    own = first.state["own"]
    assert own.size == layout.table_of("own").size
    assert set(first.upload) == {"params"}
    _, again = trainer.train(task, shared, {}, clips)
    assert again.state["own"].tobytes() == own.tobytes(), "the last client's part is gone"
    _, second = trainer.train(task, shared, first.state, clips)
    assert second.state["own"].tobytes() != own.tobytes()
    trainer.forget()
    assert not any(p.any() for p in layout.params(trainer.network, "shared", "own"))


def test_networks_that_are_compared_have_the_frozen_and_own_parts(small: ExperimentConfig) -> None:
    """MOON's contrast is that of the whole network if the rest is given as first values."""
    clips = prepare_data(small, lambda *_: None).train[:1]
    task = ClientTask(client_id=0, round_idx=1, num_rounds=1, seed=1)
    losses = set[float]()
    start = LocalTrainer(small.model, moon.Config(), small.local)
    whole = start.parameters.values() + np.float32(0.01)
    for train in ((), ("decoder",)):
        local = small.local.model_copy(update={"train": train, "steps": 1})
        layout = LocalTrainer(small.model, moon.Config(), local).layout
        rest = layout.take(whole, *NOT_SHARED) if train else None
        trainer = LocalTrainer(small.model, moon.Config(), local, rest=rest)
        params = layout.take(whole, "shared")
        report, _ = trainer.train(task, {"params": params}, {"params": params}, clips)
        losses.add(report.loss)
    assert len(losses) == 1
