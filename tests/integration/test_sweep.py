"""Sweeps with a real Ray Tune: undisturbed, killed with SIGKILL and resumed, with failed trials."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from fedvsr.config import load_config
from fedvsr.records import load_results
from tests.integration.commands import LONG, wait_until_stopped, wait_while_it_runs
from tests.integration.equality import assert_equal_runs
from tests.integration.running import run_serially
from tests.unit.test_safety import Bomb

pytestmark = pytest.mark.ray


def sweep_file(base: Path, folder: Path, **settings: Any) -> Path:
    """Two trials of the small experiment, with and without the detail loss."""
    path = folder / "sweep.yaml"
    sweep = {
        "name": "s",
        "base": str(base),
        "space": {"algorithm.lambda_hifr": {"grid": [0.0, 1.0]}},
        **settings,
        # A process for each client would take two seconds of a processor to start.
        "set": {"cluster.isolation": "slot", **settings.get("set", {})},
    }
    path.write_text(yaml.safe_dump(sweep))
    return path


def tune_command(file: Path, out: Path, *extra: str) -> list[str]:
    return [sys.executable, "-m", "fedvsr", "tune", str(file), "--out", str(out), *extra]


def tune(file: Path, out: Path, *extra: str) -> str:
    done = subprocess.run(
        tune_command(file, out, *extra),
        capture_output=True,
        text=True,
        timeout=280,
        cwd=file.parent,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def trials(out: Path) -> pd.DataFrame:
    return pd.read_parquet(out / "sweeps" / "s" / "trials.parquet")


def kill_when(file: Path, out: Path, ready: Callable[[Path], bool], *extra: str) -> None:
    """Start or resume a sweep, and kill its process as soon as its folder is `ready`."""
    process = subprocess.Popen(
        tune_command(file, out, *extra), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_while_it_runs(process, lambda: ready(out / "sweeps" / "s"))
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL


def rounds_done(folder: Path) -> dict[str, int]:
    """The last round in each run's table."""
    if not (folder / "runs").is_dir():
        return {}
    rounds = load_results(folder / "runs").rounds
    return {str(k): int(v) for k, v in rounds.groupby("run_id")["round_idx"].max().items()}


def test_a_sweep_runs_its_trials_and_writes_the_best(small_yaml: Path, tmp_path: Path) -> None:
    file = sweep_file(small_yaml, tmp_path)
    printed = tune(file, tmp_path)
    folder = tmp_path / "sweeps" / "s"
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished", "finished"]
    assert table["algorithm.lambda_hifr"].tolist() == [0.0, 1.0]
    assert table["attempts"].tolist() == [1, 1]
    assert "lambda_hifr=1  finished  round 3/3" in printed
    assert "╭" not in printed, "Tune's own reporter is silent"

    results = load_results(folder)
    assert set(results.runs["run_id"]) == set(table["run_id"])
    joined = table.merge(results.runs, on="run_id")
    assert joined["psnr_db_x"].tolist() == pytest.approx(joined["psnr_db_y"].tolist())

    # A trial is the experiment that `fedvsr run` runs, bit for bit.
    best = load_config(str(folder / "best.yaml"))
    winner = table.loc[table["psnr_db"].idxmax()]
    assert best.algorithm.lambda_hifr == winner["algorithm.lambda_hifr"]
    assert_equal_runs(folder / "runs" / winner["run_id"], run_serially(best, tmp_path / "again"))

    events = load_events(folder / "tune")
    assert events["ray/tune/psnr_db"] == pytest.approx(table["psnr_db"].tolist())
    assert events["ray/tune/test/held-out/ssim"] == pytest.approx(table["ssim"].tolist())

    again = subprocess.run(
        tune_command(file, tmp_path), capture_output=True, text=True, timeout=100
    )
    assert again.returncode == 2
    assert "--resume resumes it" in again.stderr


def load_events(folder: Path) -> dict[str, list[float]]:
    """The last value of every scalar in TensorBoard's files, by tag, in the order of trials."""
    from tensorboardX.proto.event_pb2 import Event

    last = dict[str, list[float]]()
    for path in sorted(folder.glob("*/events.out.tfevents.*")):
        scalars, data, offset = dict[str, float](), path.read_bytes(), 0
        # Records of TFRecord: length, its checksum, data, their checksum.
        while offset < len(data):
            length = int.from_bytes(data[offset : offset + 8], "little")
            event = Event.FromString(data[offset + 12 : offset + 12 + length])
            scalars |= {value.tag: value.simple_value for value in event.summary.value}
            offset += 16 + length
        for tag, value in scalars.items():
            last.setdefault(tag, []).append(value)
    return last


@pytest.mark.full
def test_a_sweep_killed_twice_loses_one_round_at_most(small_yaml: Path, tmp_path: Path) -> None:
    file = sweep_file(small_yaml, tmp_path, set=LONG)
    folder = tmp_path / "sweeps" / "s"

    # Before a trial has started.
    kill_when(file, tmp_path, lambda folder: (folder / "tune").exists())

    def two_rounds(folder: Path) -> bool:
        return max(rounds_done(folder).values(), default=0) >= 2

    kill_when(file, tmp_path, two_rounds, "--resume")
    for run in (folder / "runs").iterdir():
        wait_until_stopped(run)
    before = rounds_done(folder)
    started = {run_id: started_rounds(folder / "runs" / run_id) for run_id in before}
    printed = tune(file, tmp_path, "--resume")
    assert "finished" in printed
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished", "finished"]
    for run_id, last in before.items():
        repeated = started_rounds(folder / "runs" / run_id)[len(started[run_id]) :]
        assert repeated == list(range(last, 6)) or repeated == list(range(last + 1, 6)), (
            f"{last} rounds were recorded, then {repeated} were run"
        )
    for run_id in table["run_id"]:
        config = load_config(str(folder / "runs" / run_id / "config.yaml"))
        whole = run_serially(config, tmp_path / "whole")
        assert_equal_runs(folder / "runs" / run_id, whole)


def started_rounds(run: Path) -> list[int]:
    """The rounds in which clients finished training, in order, for each start of the run."""
    rounds = list[int]()
    for line in (run / "events.jsonl").read_text().splitlines():
        event = json.loads(line)
        if event["event"] == "RunStarted":
            rounds.append(-1)
        elif event["event"] == "ClientFinished" and rounds[-1] != event["round_idx"]:
            rounds.append(event["round_idx"])
    return [r for r in rounds if r >= 0]


@pytest.mark.full
def test_trials_that_fail_do_not_end_the_sweep(small_yaml: Path, tmp_path: Path) -> None:
    space = {"local.lr": {"grid": [0.002, 1.0]}}
    # Enough work in each round that a kill falls inside one.
    changes = {"model": {"channels": 32, "blocks": 20}, "local.steps": 12}
    file = sweep_file(small_yaml, tmp_path, space=space, set=changes, executor="serial")
    process = subprocess.Popen(
        tune_command(file, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    # The process of the good trial is killed once, in its second round.
    folder = tmp_path / "sweeps" / "s"
    pid = wait_while_it_runs(process, lambda: trial_in_round(folder, 1))
    os.kill(pid, signal.SIGKILL)
    printed, _ = process.communicate(timeout=200)
    assert process.returncode == 0, printed
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished", "failed"]
    assert table["attempts"].tolist() == [2, 1], "what fails the same way is not retried"
    assert "finite" in table["error"].iloc[1]
    assert "trial 1 failed" in printed
    assert load_config(str(folder / "best.yaml")).local.lr == 0.002


def trial_in_round(folder: Path, num_done: int) -> int | None:
    """The process of the good trial, once it has recorded `num_done` rounds."""
    for run_id, last in rounds_done(folder).items():
        config = load_config(str(folder / "runs" / run_id / "config.yaml"))
        if config.local.lr == 0.002 and last >= num_done:
            return holder_of(folder / "runs" / run_id / ".lock")
    return None


def holder_of(path: Path) -> int | None:
    inode = path.stat().st_ino
    for line in Path("/proc/locks").read_text().splitlines():
        fields = line.split()
        if fields[1] == "FLOCK" and fields[5].endswith(f":{inode}"):
            return int(fields[4])
    return None


def plant_bombs(sweep: Path, mark: Path) -> None:
    """Replace every pickle in a sweep's folder, and those that Tune restores, by one that acts."""
    bomb = pickle.dumps(Bomb(mark))
    for name in ("tuner.pkl", "trainable.pkl"):
        (sweep / "tune" / name).write_bytes(bomb)
    for path in sweep.rglob("*.pkl"):
        path.write_bytes(bomb)
    for path in sweep.glob("tune/experiment_state-*.json"):
        hexed = {"_type": "CLOUDPICKLE_FALLBACK", "value": bomb.hex()}
        path.write_text(json.dumps({"trial_data": [], "runner_data": hexed, "stats": {}}))


@pytest.mark.full
def test_a_trial_that_falls_behind_is_stopped_early(small_yaml: Path, tmp_path: Path) -> None:
    file = sweep_file(
        small_yaml,
        tmp_path,
        space={"local.lr": {"grid": [0.002, 1e-7]}},
        scheduler={"name": "asha", "grace_rounds": 1, "reduction_factor": 2},
        set={"local.steps": 20},
        executor="serial",
    )
    # One after the other, so that the second is compared with the first, which has finished.
    printed = tune(file, tmp_path, "--max-concurrent", "1")
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished", "stopped_early"], printed
    assert table["round_idx"].iloc[1] < 3
    assert load_config(str(tmp_path / "sweeps" / "s" / "best.yaml")).local.lr == 0.002
    runs = load_results(tmp_path / "sweeps" / "s").runs
    assert runs["executor"].tolist() == ["serial", "serial"]
    # Resuming does not start it again, and unpickles nothing of what lies in the folder.
    plant_bombs(tmp_path / "sweeps" / "s", tmp_path / "exploded")
    tune(file, tmp_path, "--resume")
    assert not (tmp_path / "exploded").exists()
    pd.testing.assert_frame_equal(trials(tmp_path), table)


@pytest.mark.slow
def test_a_poor_trial_continues_from_the_state_of_a_good_one(
    small_yaml: Path, tmp_path: Path
) -> None:
    num_rounds = 8
    file = sweep_file(
        small_yaml,
        tmp_path,
        space={"local.lr": {"grid": [0.002, 1e-7]}},
        scheduler={"name": "pbt", "perturb_rounds": 2, "quantile": 0.5},
        set={"federation.num_rounds": num_rounds, "local.steps": 20, "algorithm.name": "scaffold"},
    )
    tune(file, tmp_path)
    folder, table = tmp_path / "sweeps" / "s", trials(tmp_path)
    assert table["status"].tolist() == ["finished", "finished"]
    (forked,) = table.dropna(subset=["parent_run_id"]).to_dict("records")
    assert 0 < forked["from_round"] < num_rounds
    results = load_results(folder / "runs" / forked["run_id"])
    assert results.rounds["round_idx"].tolist() == list(range(num_rounds + 1))
    assert set(results.rounds["run_id"]) == {forked["run_id"]}
    parent = load_results(folder / "runs" / forked["parent_run_id"]).rounds
    before = results.rounds["round_idx"] <= forked["from_round"]
    assert results.rounds[before]["psnr_db"].tolist() == (
        parent[parent["round_idx"] <= forked["from_round"]]["psnr_db"].tolist()
    )


@pytest.mark.slow
def test_a_killed_population_is_resumed(small_yaml: Path, tmp_path: Path) -> None:
    file = sweep_file(
        small_yaml,
        tmp_path,
        space={"local.lr": {"grid": [0.002, 1e-7]}},
        scheduler={"name": "pbt", "perturb_rounds": 2, "quantile": 0.5},
        set={"federation.num_rounds": 6, "local.steps": 20},
        executor="serial",
    )
    kill_when(file, tmp_path, lambda folder: max(rounds_done(folder).values(), default=0) >= 2)
    folder = tmp_path / "sweeps" / "s"
    for run in (folder / "runs").iterdir():
        wait_until_stopped(run)
    plant_bombs(folder, tmp_path / "exploded")
    tune(file, tmp_path, "--resume")
    assert not (tmp_path / "exploded").exists()
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished", "finished"]
    for run_id in table["run_id"]:
        rounds = load_results(folder / "runs" / run_id).rounds
        assert rounds["round_idx"].tolist() == list(range(7))


@pytest.mark.slow
def test_a_searcher_of_ray_tune_chooses_the_trials(small_yaml: Path, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    file = sweep_file(
        small_yaml,
        tmp_path,
        space={"local.lr": {"loguniform": [1e-4, 1e-2]}, "algorithm.alpha": {"grid": [1, 2]}},
        constraints={"algorithm.mu": "local.lr / 10"},
        searcher={"name": "optuna", "num_samples": 3},
    )
    tune(file, tmp_path)
    table = trials(tmp_path)
    assert table["status"].tolist() == ["finished"] * 3
    assert table["local.lr"].between(1e-4, 1e-2).all()
    assert table["local.lr"].nunique() == 3
    assert table["algorithm.mu"].tolist() == pytest.approx((table["local.lr"] / 10).tolist())


# MLflow's own packages deprecate each other.
@pytest.mark.full
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*noload")
def test_metrics_reach_mlflow(small_yaml: Path, tmp_path: Path) -> None:
    mlflow = pytest.importorskip("mlflow")
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    tune(sweep_file(small_yaml, tmp_path, loggers={"mlflow": uri}, executor="serial"), tmp_path)
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("s")
    runs = client.search_runs([experiment.experiment_id])
    logged = sorted(run.data.metrics["test/held-out/psnr_db"] for run in runs)
    assert logged == pytest.approx(sorted(trials(tmp_path)["psnr_db"]))
    assert {run.data.params["algorithm.lambda_hifr"] for run in runs} == {"0.0", "1.0"}


@pytest.mark.full
def test_metrics_reach_weights_and_biases(
    small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    for name, value in {"MODE": "offline", "API_KEY": "x" * 40, "DIR": str(tmp_path)}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    tune(sweep_file(small_yaml, tmp_path, loggers={"wandb": "p"}, executor="serial"), tmp_path)
    runs = tmp_path / "sweeps" / "s" / "runs"
    logs = list(runs.glob("*/wandb/offline-run-*/*.wandb"))
    assert len(logs) == 2
    assert all(b"psnr_db" in path.read_bytes() for path in logs)
