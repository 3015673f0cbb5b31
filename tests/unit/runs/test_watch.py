from __future__ import annotations

import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.errors import UserError
from fedvsr.federation.executors import SerialExecutor
from fedvsr.runs import watch as module
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import create_run
from fedvsr.runs.watch import recorded, watch
from tests.unit.cli.test_cli import fedvsr
from tests.unit.report.synthetic import write_run


def test_what_is_watched_is_what_the_run_itself_says(
    small: ExperimentConfig, tmp_path: Path
) -> None:
    lossy = {"offline_probability": 0.6, "upload_failure_probability": 0.3, "num_rounds": 3}
    federation = small.federation.model_copy(update=lossy)
    small = small.model_copy(update={"federation": federation})
    run = create_run(small, tmp_path)
    seen = list[Event]()
    watcher = threading.Thread(target=lambda: seen.extend(watch(run.folder, poll_s=0.02)))
    watcher.start()
    split = prepare_data(small, lambda *_: None)
    own = [
        e for e in execute(run, split, SerialExecutor) if isinstance(e, RunStarted | RoundRecorded)
    ]
    watcher.join(timeout=30)
    assert not watcher.is_alive(), "watching ends with the run"
    started, *rounds = seen
    assert isinstance(started, RunStarted)
    assert (started.run_id, started.num_rounds, started.num_clients) == (run.run_id, 3, 4)
    assert len(rounds) == len(own) - 1 == 4
    for told, said in zip(rounds, own[1:], strict=True):
        assert isinstance(told, RoundRecorded)
        assert isinstance(said, RoundRecorded)
        assert told.round_idx == said.round_idx
        assert told.client_ids == said.client_ids
        assert told.loss == said.loss
        assert told.scores == said.scores
        assert told.wall_s == said.wall_s > 0, "both show the same seconds"
        assert told == replace(said, slot_utilisation=None)
    assert recorded(run.folder) == rounds


def test_the_command_prints_rounds_and_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, "done")
    assert fedvsr("watch", "done", "--out", str(tmp_path)) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "done: 1,000 parameters, 4 clients, 2 rounds on CPU"
    assert lines[3].startswith(
        "round 2/2  loss 0.1000  test set held-out  RGB PSNR 32.00 dB  over bicubic +3.00 dB"
    )
    assert lines[-1] == "done finished"
    folder = write_run(tmp_path, "bad", status="failed", done=1)
    assert fedvsr("watch", str(folder)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "bad failed"


def test_a_run_whose_process_died_is_called_stopped(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_run(tmp_path, "dead", status="running", done=1)
    (folder / ".lock").touch()
    long_ago = time.time() - 3600
    for path in (*folder.glob("*.parquet"), folder):
        os.utime(path, (long_ago, long_ago))
    assert fedvsr("watch", str(folder)) == 1
    assert capsys.readouterr().out.splitlines()[-1] == "dead stopped"


def test_a_silent_run_is_waited_for_while_its_lock_or_its_pace_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, "slow", status="running", done=2, num_rounds=9)
    monkeypatch.setattr(module, "run_status", lambda folder: "running")
    monkeypatch.setattr(module, "silence_s", lambda folder: 1e6)
    waits = list[float]()

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            monkeypatch.setattr(module, "run_status", lambda folder: "stopped")

    events = list(watch(folder, 7.0, sleep))
    assert waits == [7.0] * 3
    assert [e.round_idx for e in events if isinstance(e, RoundRecorded)] == [0, 1, 2]
    # A round takes 2 s here, so a minute of silence is what it takes, not less.
    monkeypatch.setattr(module, "silence_s", lambda folder: 59.0)
    assert not module._is_dead(folder, [2.0])
    monkeypatch.setattr(module, "silence_s", lambda folder: 61.0)
    assert module._is_dead(folder, [2.0])


def test_what_is_no_run_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no run at"):
        list(watch(tmp_path / "nothing"))
    os.utime(tmp_path, (1.0, 1.0))
    with pytest.raises(UserError, match="has no tables"):
        list(watch(tmp_path))


def test_a_round_waits_for_its_scores_also_when_the_run_has_only_just_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, "new", status="finished", done=1)
    whole = module._read(folder, 0)
    assert whole is not None
    unscored = replace(
        whole,
        rounds=whole.rounds.assign(evaluate_s=float("nan")),
        evaluations=whole.evaluations.iloc[:0],
    )
    looks = iter([("starting", unscored), ("finished", whole)])

    def look(_: Path) -> str:
        status, results = next(looks)
        monkeypatch.setattr(module, "_read", lambda *_: results)
        return status

    monkeypatch.setattr(module, "_status", look)
    events = list(watch(folder, poll_s=0, sleep=lambda _: None))
    rounds = [event for event in events if isinstance(event, RoundRecorded)]
    assert rounds
    assert all(event.scores for event in rounds)


def test_a_look_reads_only_the_rounds_that_are_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, "long", status="running", done=6, num_rounds=9)
    read, seen = module._tables, list[list[int]]()

    def tables(folder: Path, since: int = 0) -> object:
        found = read(folder, since)
        seen.append(found.rounds["round_idx"].tolist())
        return found

    monkeypatch.setattr(module, "_tables", tables)
    monkeypatch.setattr(module, "_is_dead", lambda *_: len(seen) == 2)
    rounds = list(watch(folder, sleep=lambda _: None))[1:]
    assert len(rounds) == 7
    assert seen == [list(range(7)), []]


def test_a_rounds_seconds_are_those_between_two_last_updates(tmp_path: Path) -> None:
    # Scoring (1 s) overlaps the next round's training, so it is no part of a round's time.
    clients = [
        {"round_idx": r, "client_id": c, "started_s": 0.25 * (c + 1), "train_s": 1.0}
        for r in (1, 2) for c in (0, 1)
    ]  # fmt: skip
    folder = write_run(tmp_path, "one", clients=clients)
    path = folder / "rounds.parquet"
    table = pq.read_table(path)
    i = table.schema.get_field_index("gap_s")
    gaps = pa.array([None, None, 0.75])
    pq.write_table(table.set_column(i, table.schema.field(i), gaps), path)
    rounds = [event for event in watch(folder) if isinstance(event, RoundRecorded)]
    # 2 s from the first task to the last report; of them 0.25 s before the first step, as the gap.
    assert [event.wall_s for event in rounds] == [1.0, 2.0, 0.75 + 2.0 - 0.25]
