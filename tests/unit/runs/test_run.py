"""How a run begins."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import datetime, tzinfo
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from fedvsr import models
from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.split import Split
from fedvsr.errors import DamagedError, UserError
from fedvsr.federation.executors import SerialExecutor
from fedvsr.federation.rounds import ClientFinished
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.trained import find_trained
from fedvsr.models.origin import SPYNET, source_of
from fedvsr.models.spec import RELEASED_FLOW
from fedvsr.params import flatten
from fedvsr.records import load_results
from fedvsr.runs.events import RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import _start, prepare_data
from fedvsr.runs.notes import notes_of
from fedvsr.runs.run import (
    Run,
    create_run,
    find_run,
    locked,
    open_run,
    run_status,
    stored_config,
)
from fedvsr.training.checkpoint import save_model
from fedvsr.tuning import trial
from tests.unit.tuning.test_progress import as_running


def test_a_run_starts_from_the_weights_it_is_given(small: ExperimentConfig, tmp_path: Path) -> None:
    network = models.build_fresh(small.model)
    network.to_pixels.weight.data.normal_(std=0.05)
    save_model(tmp_path / "start.safetensors", network, small.model)
    model = small.model.model_copy(update={"weights": str(tmp_path / "start.safetensors")})
    config = small.model_copy(update={"model": model})
    split = prepare_data(config, lambda *_: None)
    run = create_run(config, tmp_path)
    events = execute(run, split, SerialExecutor)
    assert isinstance(next(events), RunStarted)
    first = next(events)
    events.close()
    assert isinstance(first, RoundRecorded)
    wanted = (
        Evaluator(small.model, small.evaluation, split.test, split.test_sets)
        .score(flatten(network))
        .scores
    )
    assert [score.values for score in first.scores] == [score.values for score in wanted]
    assert np.isfinite(wanted[0].values["psnr_db"])
    assert wanted[0].values["psnr_db"] != wanted[0].values["bicubic_psnr_db"]


def test_a_frame_of_each_clip_is_kept_after_every_evaluation(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    split = prepare_data(small, lambda *_: None)
    run = create_run(small, tmp_path)
    (clip,) = split.test
    middle = clip.num_frames // 2
    made = list[bytes]()
    for event in execute(run, split, SerialExecutor):
        if isinstance(event, RoundRecorded):
            kept = {path.name: path for path in (run.folder / "frames").iterdir()}
            stem = f"{clip.clip_id}_{middle:03d}"
            assert kept.keys() == {f"{stem}_{kind}.png" for kind in ("bicubic", "gt", "sr")}
            assert (np.asarray(Image.open(kept[f"{stem}_gt.png"])) == clip.gt()[middle]).all()
            made.append(kept[f"{stem}_sr.png"].read_bytes())
    assert len(set(made)) == len(made) == small.federation.num_rounds + 1
    assert kept[f"{stem}_sr.png"].read_bytes() == made[-1], "nothing is made again at the end"


def notes(config: ExperimentConfig, *overlap: str) -> tuple[str, ...]:
    return notes_of(config, Split((), (), overlap))


def test_a_run_says_that_flow_starts_from_scratch() -> None:
    video = "data.videos=[a.mp4]"
    scratch = ["model.flow_weights=null", "local.freeze_steps=0"]
    (note,) = notes(load_config("rvrt", [video, *scratch]))
    assert "model.flow_weights=PATH" in note
    assert "spynet_sintel_final-3d2a1287.pth" in note
    (licence,) = notes(load_config("rvrt", [video]))
    assert f"{RELEASED_FLOW}: {SPYNET}" in licence, "the preset names the released weights"
    assert "from scratch" not in licence
    assert notes(load_config("demo")) == ()


def test_a_run_says_that_clients_share_processes() -> None:
    (note,) = notes(load_config("demo", ["cluster.isolation=slot"]))
    assert "clients share processes" in note
    assert "cluster.isolation = slot" in note


def test_a_run_says_what_a_secure_sum_hides() -> None:
    secure = ["update.secure_sum=true"]
    (note,) = notes(load_config("demo", secure))
    assert "the server reads the sum of a round's updates" in note
    assert "with --executor serial all is one process" in note
    _, pair = notes(load_config("demo", [*secure, "federation.clients_per_round=2"]))
    assert "each learns the other's update" in pair


def test_a_run_and_what_comes_of_it_name_the_weights_that_it_started_from(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    source = ("a.pth: RVRT, CC-BY-NC-4.0",)
    weights = tmp_path / "start.safetensors"
    save_model(weights, models.build_fresh(small.model), small.model, source)
    changes = {
        "model": small.model.model_copy(update={"weights": str(weights)}),
        "federation": small.federation.model_copy(update={"num_rounds": 2}),
    }
    config = small.model_copy(update=changes)
    split = prepare_data(config, lambda *_: None)
    run = create_run(config, tmp_path / "out")
    events = execute(run, split, SerialExecutor)
    started = next(events)
    assert isinstance(started, RunStarted)
    assert any(source[0] in note for note in started.notes)
    next(
        event
        for event in events
        if isinstance(event, ClientFinished) and event.report.round_idx > 1
    )
    events.close()
    assert find_trained(str(run.folder), tmp_path).weights_source == source, "not finished"
    # A run that is resumed needs the file no more.
    weights.unlink()
    list(execute(run, split, SerialExecutor))
    assert load_results(run.folder).runs["weights_source"].tolist() == [source[0]]
    assert source_of(run.folder / "model.safetensors") == source
    assert find_trained(str(run.folder), tmp_path).weights_source == source


def test_a_look_at_a_runs_status_does_not_keep_it_from_starting(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    run = create_run(small, tmp_path)
    events = execute(run, prepare_data(small, lambda *_: None), SerialExecutor)
    with (run.folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        threading.Timer(0.3, fcntl.flock, (file, fcntl.LOCK_UN)).start()
        assert isinstance(next(events), RunStarted)
    events.close()


def test_runs_of_the_same_second_have_folders_of_their_own(
    small: ExperimentConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> Clock:
            return cls(2026, 1, 1, tzinfo=tz)

    monkeypatch.setattr("fedvsr.runs.run.datetime", Clock)
    folders = {create_run(small, tmp_path).folder for _ in range(102)}
    assert len(folders) == 102
    assert all((folder / "config.yaml").is_file() for folder in folders)


def test_a_look_at_a_run_writes_nothing(undisturbed: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name))
    as_running(folder)
    (folder / ".lock").unlink(missing_ok=True)
    before = sorted(folder.rglob("*"))
    assert run_status(folder) == "stopped"
    assert sorted(folder.rglob("*")) == before
    with locked(folder):
        assert run_status(folder) == "running"
    # A mode that forbids writing stops only those who are not root.
    (folder / ".lock").chmod(0o444)
    folder.chmod(0o555)
    assert run_status(folder) == "stopped"
    folder.chmod(0o755)


def test_a_new_run_removes_what_killed_ones_left(
    small: ExperimentConfig, undisturbed: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name))
    done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], stdout=-1)
    left = [
        folder / f".rounds.parquet.{int(done.stdout)}.tmp",
        folder / "checkpoints" / f".round-000004.safetensors.{int(done.stdout)}.tmp",
    ]
    for path in left:
        path.touch()
    with locked(folder):
        create_run(small, tmp_path)
        assert all(path.exists() for path in left), "its process may live on another machine"
    create_run(small, tmp_path)
    assert not any(path.exists() for path in left)
    left[0].touch()
    list(execute(open_run(small, folder), prepare_data(small, lambda *_: None), SerialExecutor))
    assert not list(folder.rglob("*.tmp"))


def test_all_files_of_a_run_have_one_mode(undisturbed: Path) -> None:
    files = [p for p in undisturbed.rglob("*") if p.is_file() and p.name != ".lock"]
    assert {path.suffix for path in files} >= {".safetensors", ".parquet", ".yaml", ".png"}
    assert len({path.stat().st_mode for path in files}) == 1


@pytest.mark.parametrize(
    "text", ["hello: world", "", "[1, 2]", "a: [", "\x00", "\udcff", "data: {videos: 3}"]
)
def test_a_neighbour_with_a_foreign_configuration_is_skipped_by_resume(
    text: str, small: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = create_run(small, tmp_path)
    (tmp_path / "other").mkdir()
    path = tmp_path / "other" / "config.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    (tmp_path / "folder" / "config.yaml").mkdir(parents=True)
    # All folders are looked at, whatever their order.
    with pytest.raises(UserError, match="no run of this configuration"):
        find_run(small.model_copy(update={"seed": 99}), tmp_path)
    problem = "is no configuration of this version" if text else "is damaged: it is cut short"
    assert f"skipped {path.parent}: config.yaml {problem}" in caplog.text
    assert len(caplog.messages) == 2
    assert find_run(small, tmp_path).folder == run.folder


@pytest.fixture
def foreign_lock(small: ExperimentConfig, undisturbed: Path, tmp_path: Path) -> Iterator[Run]:
    """A run whose lock another process holds for as long as the test lasts."""
    run = open_run(small, Path(shutil.copytree(undisturbed, tmp_path / undisturbed.name)))
    as_running(run.folder)
    program = (
        "import sys; from filelock import FileLock; lock = FileLock(sys.argv[1]); "
        "lock.acquire(); print('locked', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", program, str(run.folder / ".lock")]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "locked\n"
        yield run
        process.communicate(timeout=30)


def test_a_driver_on_ray_waits_for_the_runs_lock_no_longer_than_its_limit(
    foreign_lock: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fedvsr.runs.launch._LOCK_S", 1.5)
    split = prepare_data(foreign_lock.config, lambda *_: None)
    # What the driver's actor does; it would reserve nothing before it has the lock.
    placed, stop = MagicMock(), threading.Event()
    began = time.monotonic()
    with pytest.raises(UserError, match="another process is writing"):
        next(_start(foreign_lock, split, placed, None, (), stop))
    assert 1.5 <= time.monotonic() - began < 20


def test_a_trial_waits_for_its_runs_lock_no_longer_than_its_limit(
    foreign_lock: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "_LOCK_WAIT_S", 1.5)
    began = time.monotonic()
    with pytest.raises(UserError, match=r"another process is writing .*, then --resume"):
        trial._wait_until_unlocked(foreign_lock)
    assert 1.5 <= time.monotonic() - began < 20


def test_a_configuration_that_was_edited_is_refused_in_its_run_and_accepted_as_a_file(
    small: ExperimentConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = create_run(small, tmp_path)
    path = run.folder / "config.yaml"
    path.write_text(path.read_text().replace("seed: 3", "seed: 8"))
    changed = small.model_copy(update={"seed": 8})
    with pytest.raises(DamagedError, match=r"config\.yaml is damaged, or was edited by hand"):
        stored_config(run.folder)
    with pytest.raises(UserError, match="no run of this configuration"):
        find_run(changed, tmp_path)
    assert f"skipped {run.folder}: config.yaml is damaged, or was edited" in caplog.text
    with pytest.raises(DamagedError, match="was edited by hand"):
        find_trained(run.run_id, tmp_path)
    assert load_config(str(path)) == changed


def test_a_run_whose_own_row_is_damaged_can_be_resumed(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    run = create_run(small, tmp_path)
    (run.folder / "runs.parquet").write_bytes(b"PAR1")
    assert find_run(small, tmp_path).folder == run.folder


def test_the_run_to_resume_is_the_one_that_began_last(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    """Not the one whose folder was changed last: tags and reports are written into any."""
    older, newer = (create_run(small, tmp_path) for _ in range(2))
    older.label("paper")
    assert find_run(small, tmp_path).run_id == newer.run_id
