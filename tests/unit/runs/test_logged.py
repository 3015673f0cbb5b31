"""Runs and their loggers: each round once, also after a stop; and a failure that ends nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.federation.executors import Fault
from fedvsr.loggers import config as loggers
from fedvsr.loggers.config import LoggingConfig
from fedvsr.loggers.tensorboard import read
from fedvsr.records import load_results, read_run
from fedvsr.runs.events import Event, RoundRecorded
from fedvsr.runs.launch import launch, prepare_data
from fedvsr.runs.logged import _past
from fedvsr.runs.run import Run, create_run
from tests.integration.equality import assert_equal_runs
from tests.integration.running import split_of


def with_logging(config: ExperimentConfig, **settings: Any) -> ExperimentConfig:
    return config.model_copy(update={"logging": LoggingConfig.model_validate(settings)})


def stopped_and_resumed(config: ExperimentConfig, out: Path) -> tuple[Run, list[Event]]:
    """A run that is stopped after round 1 and then runs to its end, and all its events."""
    run = create_run(config, out)
    events = list[Event]()
    stream = launch(run, split_of(config), "serial")
    for event in stream:
        events.append(event)
        if isinstance(event, RoundRecorded) and event.round_idx == 1:
            break
    stream.close()
    events += launch(run, split_of(config), "serial")
    return run, events


def in_tensorboard(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The scalars of a run's files: pairs of round and value, by tag."""
    scalars = dict[str, list[tuple[int, float]]]()
    for path in sorted((folder / "tensorboard").iterdir()):
        for event in read(path):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars


def others_in_tensorboard(folder: Path) -> Iterator[tuple[int, str, bytes]]:
    """Pictures and texts: round, tag and bytes."""
    for path in (folder / "tensorboard").iterdir():
        for event in read(path):
            for value in event.summary.value:
                if not value.HasField("simple_value"):
                    texts = b"".join(value.tensor.string_val)
                    yield event.step, value.tag, value.image.encoded_image_string or texts


def scores_of(folder: Path) -> pd.Series[float]:
    return load_results(folder).rounds.set_index("round_idx")["psnr_db"]


def test_a_stopped_run_continues_its_curves(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run, _ = stopped_and_resumed(with_logging(small, tensorboard=True), tmp_path)
    scalars, rounds = in_tensorboard(run.folder), load_results(run.folder).rounds
    expected = {
        "test/held-out/psnr_db": "psnr_db",
        "test/held-out/ssim_y": "ssim_y",
        "train/loss": "loss",
        "bytes/upload_bytes": "upload_bytes",
        "clients/num_failed": "num_failed",
        "seconds/evaluate_s": "evaluate_s",
    }
    for tag, column in expected.items():
        recorded = rounds.set_index("round_idx")[column].dropna()
        assert [i for i, _ in scalars[tag]] == recorded.index.tolist(), tag
        assert [v for _, v in scalars[tag]] == pytest.approx(recorded.tolist()), tag
    assert [i for i, _ in scalars["seconds/round_s"]] == [1, 2, 3]

    others = {tag: (step, data) for step, tag, data in others_in_tensorboard(run.folder)}
    assert b"num_rounds: 3" in others["configuration/text_summary"][1]
    step, text = others["scores/text_summary"]
    assert step == 3
    assert f"{scores_of(run.folder)[3]:.4f}".encode() in text
    pictures = {tag for tag, (_, data) in others.items() if data.startswith(b"\x89PNG")}
    kept = {path.stem.rpartition("_") for path in (run.folder / "frames").iterdir()}
    assert pictures == {f"{clip.rpartition('_')[0]}/{kind}" for clip, _, kind in kept}

    assert_equal_runs(undisturbed, run.folder)
    assert read_run(run.folder)["config_hash"] == small.config_hash()  # type: ignore[index]


def test_rounds_of_the_tables_are_those_of_the_events(undisturbed: Path) -> None:
    rounds = load_results(undisturbed).rounds.set_index("round_idx")
    # A checkpoint of round 2: later rounds are repeated, and come as events.
    past = list(_past(undisturbed, until=2, after=0))
    assert [finished.round_idx for finished in past] == [1, 2]
    for finished in past:
        row = rounds.loc[finished.round_idx]
        assert finished.values["train/loss"] == row["loss"]
        assert finished.values["test/held-out/psnr_db"] == pytest.approx(row["psnr_db"])
        assert finished.values["seconds/train_s"] == row["train_s"]
    assert [finished.round_idx for finished in _past(undisturbed, until=0, after=-1)] == [0]
    assert list(_past(undisturbed, until=2, after=2)) == []


def test_a_logger_that_fails_is_told_and_changes_nothing(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    run = create_run(with_logging(small, tensorboard=True), tmp_path)
    # A file where the logger wants a folder.
    (run.folder / "tensorboard").touch()
    events = list(launch(run, split_of(small), "serial"))
    faults = [event for event in events if isinstance(event, Fault)]
    assert [fault.kind for fault in faults] == ["logger", "logger"]
    assert [fault.final for fault in faults] == [False, True]
    assert faults[0].message.startswith("tensorboard FileExistsError: [Errno 17] File exists")
    assert load_results(run.folder).faults["kind"].tolist() == ["logger", "logger"]
    assert read_run(run.folder)["status"] == "finished"  # type: ignore[index]
    assert_equal_runs(undisturbed, run.folder)


def test_a_missing_package_is_named_before_anything_starts(
    small: ExperimentConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(loggers._PACKAGES, "mlflow", "no_such_package")
    message = r"logging.mlflow needs the package no_such_package: pip install 'fedvsr\[mlflow\]'"
    with pytest.raises(UserError, match=message):
        prepare_data(with_logging(small, mlflow={}), lambda *_: None)


# MLflow's own packages deprecate each other.
@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*noload")
@pytest.mark.parametrize("store", ["sqlite", "folder"])
def test_mlflow_continues_one_run(
    small: ExperimentConfig, tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db" if store == "sqlite" else str(tmp_path / "mlruns")
    monkeypatch.chdir(tmp_path)
    chosen = {"tracking_uri": uri, "experiment": "e"}
    run, events = stopped_and_resumed(with_logging(small, mlflow=chosen), tmp_path / "out")
    assert not [event for event in events if isinstance(event, Fault)]
    client = mlflow.MlflowClient(uri)
    (logged,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert logged.info.status == "FINISHED"
    assert logged.data.params["local.lr"] == "0.002"
    history = client.get_metric_history(logged.info.run_id, "test/held-out/psnr_db")
    assert [m.step for m in history] == [0, 1, 2, 3]
    assert [m.value for m in history] == pytest.approx(scores_of(run.folder).tolist())
    paths = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert paths == {"config.yaml", "frames", "scores.json", "tables"}


@pytest.mark.full
def test_weights_and_biases_offline_has_each_round_once(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    pytest.importorskip("wandb")
    chosen = {"project": "p", "mode": "offline"}
    run, events = stopped_and_resumed(with_logging(small, wandb=chosen), tmp_path)
    assert not [event for event in events if isinstance(event, Fault)]
    logged = [
        (step, name)
        for path in sorted((run.folder / "wandb").glob("offline-run-*/*.wandb"))
        for step, names in in_wandb(path)
        for name in names
    ]
    assert [i for i, name in logged if name == "test/held-out/psnr_db"] == [0, 1, 2, 3]
    assert {i for i, name in logged if name.startswith(("scores/", "frames/"))} == {3}
    assert not [path for path in run.folder.rglob("*") if path.is_symlink()]


def in_wandb(path: Path) -> Iterator[tuple[int, list[str]]]:
    """The rows of an offline run: its step and its names."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, start, whole = path.read_bytes(), 7, b""
    while start + 7 <= len(data):
        # LevelDB's log: blocks of 32 kB, in which a part has its checksum, length and kind.
        if (left := 32768 - start % 32768) < 7:
            start += left
            continue
        size, kind = int.from_bytes(data[start + 4 : start + 6], "little"), data[start + 6]
        whole += data[start + 7 : start + 7 + size]
        start += 7 + size
        if kind in (1, 4):
            record, whole = Record.FromString(whole), b""
            if record.HasField("history"):
                items = record.history.item
                names = [item.key or "/".join(item.nested_key) for item in items]
                yield record.history.step.num, names
