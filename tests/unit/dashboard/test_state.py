"""What the page of one run shows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.config import ExperimentConfig
from fedvsr.dashboard import clients, eventlog, state
from fedvsr.dashboard.state import RunReader
from fedvsr.federation.executors import Fault, SerialExecutor
from fedvsr.federation.rounds import ClientFinished
from fedvsr.messages import ClientReport
from fedvsr.recording import RunRecords
from fedvsr.runs.events import EventLog, RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.run import create_run
from fedvsr.runs.watch import watch
from fedvsr.schemas import SCHEMAS
from tests.conftest import moving_texture
from tests.integration.running import split_of
from tests.unit.dashboard.test_index import damage
from tests.unit.report.synthetic import write_frames, write_run

CLIENTS = [
    {"round_idx": r, "client_id": c, "slot": c % 2, "started_s": 0.5, "train_s": 1.5, "loss": 1 / r}
    for r in (1, 2) for c in (0, r)
]  # fmt: skip

_COUNTS = ("num_sampled", "num_online", "num_failed", "num_rejected", "num_upload_failures")


def test_a_run_while_it_trains(small: ExperimentConfig, tmp_path: Path) -> None:
    run = create_run(small, tmp_path)
    reader = RunReader(run.run_id, run.folder)
    assert reader.state()["status"] == "starting"
    cohorts, seen = dict[int, list[int]](), list[int]()
    for event in execute(run, split_of(small), SerialExecutor):
        now = reader.state()
        assert now["errors"] == []
        if isinstance(event, ClientFinished):
            of_round = now["now"]
            states = {own["client_id"]: own for own in of_round["clients"]}
            cohorts[event.report.round_idx] = list(states)
            assert of_round["round_idx"] == event.report.round_idx
            assert (of_round["num_finished"], of_round["num_sampled"]) == (event.num_finished, 2)
            assert states[event.report.client_id]["state"] == "finished"
            assert states[event.report.client_id]["loss"] == event.report.loss
        elif isinstance(event, RoundRecorded):
            assert now["last_round"] == event.round_idx
            assert now["psnr_db"] == pytest.approx(
                np.mean([s.values["psnr_db"] for s in event.scores])
            )
            if event.round_idx:
                assert [bar["client_id"] for bar in now["last"]["bars"]] == event.client_ids
                assert now["last"]["absent"] == []
                assert set(cohorts[event.round_idx]) == set(event.client_ids), (
                    "drawn as the run does"
                )
            seen.append(event.round_idx)
        elif isinstance(event, RunStarted):
            assert now["status"] == "running"
    assert seen == [0, 1, 2, 3]
    # The same round, had one of its clients failed for good.
    table = pq.read_table(run.folder / "clients.parquet")
    client_id = table["client_id"][-1].as_py()
    others = clients.slots(
        [{**dict.fromkeys(_COUNTS), "round_idx": 3, "train_s": 1.0}],
        table.slice(0, len(table) - 1),
        json.loads(small.model_dump_json()),
        pq.read_table(run.folder / "partition.parquet"),
        4,
    )
    assert others is not None
    assert others["absent"] == [client_id]
    done = reader.state()
    assert (done["status"], done["now"]) == ("finished", None)
    assert done["frames"]
    assert len(reader.frames()["frames"]) == 1
    (panel,) = [p for p in done["charts"]["panels"] if p["metric"] == "psnr_db"]
    assert panel["rounds"] == [0, 1, 2, 3]
    seconds = next(p for p in done["charts"]["panels"] if p["metric"] == "seconds")
    walls = [e.wall_s for e in watch(run.folder) if isinstance(e, RoundRecorded) and e.round_idx]
    assert seconds["lines"][0]["mean"] == pytest.approx(walls, abs=1e-6), "as fedvsr watch"
    assert done["log"][-1]["text"] == "started on CPU"
    assert done["log"][0]["text"].startswith("round 3 recorded, loss ")
    assert "clients_per_round: 2" in done["config"]
    json.dumps(done, allow_nan=False)


def test_it_is_read_again_only_if_a_file_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_run(tmp_path, "run", clients=CLIENTS)
    reads, original = list[str](), state.checked_table

    def counting(
        of: Path, name: str, columns: Sequence[str] | None, since: int | None = None
    ) -> object:
        reads.append(name)
        return original(of, name, columns, since)

    monkeypatch.setattr(state, "checked_table", counting)
    reader = RunReader("run", folder)
    first = reader.state()
    assert sorted(reads) == ["clients", "evaluations", "faults", "partition", "rounds"]
    assert reader.state() == first
    assert len(reads) == 5
    with EventLog(folder / "events.jsonl", "run") as log:
        log.write(Fault(2, 0, "died", "client 0 died"))
    assert reader.state()["log"][0]["text"] == "round 2: died: client 0 died; retried"
    assert len(reads) == 5, "no table has changed"
    (folder / "clients.parquet").touch()
    reader.state()
    assert len(reads) == 9, "the partition is that of before"
    (folder / "partition.parquet").touch()
    reader.state()
    assert len(reads) == 14


def test_rows_of_earlier_rounds_are_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each look at a run of many rounds costs the rows of its newest rounds, whatever came before.

    A process that takes the run over may write other rows of earlier rounds, and all are read.
    """
    counts, original = list[int](), state.checked_table

    def counting(*arguments: object, **since: int) -> pa.Table:
        table = original(*arguments, **since)  # type: ignore[arg-type]
        counts.append(len(table))
        return table

    folder = write_run(tmp_path, "run", num_rounds=8, done=0, status="running")
    identity = {"run_id": "run", "seed": 1, "config_hash": "run"}
    records = RunRecords(folder, identity, write_s=60, part_rows=20)

    def add(round_idx: int, loss: float) -> None:
        clients = [{"client_id": i, "loss": loss, "train_s": 1.0} for i in range(10)]
        records.write_round(round_idx, {"num_sampled": 10, "gap_s": 0, "train_s": 2.0}, clients)
        score = {"clip_id": "a", "test_set": "A", "psnr_db": 30.0 + loss}
        records.write_scores(round_idx, {"psnr_db": 30.0 + loss}, [score])

    monkeypatch.setattr(state, "checked_table", counting)
    reader = RunReader("run", folder)
    for round_idx in range(1, 9):
        add(round_idx, 1 / round_idx)
        before = len(counts)
        shown = reader.state()
        # At most the last round that was known, and this one: 10 clients, a score and a round.
        assert round_idx == 1 or sum(counts[before:]) <= 24 + len(SCHEMAS), round_idx
    assert shown["errors"] == []
    assert shown == RunReader("run", folder).state()
    add(8, 9.0)
    assert (
        reader.state()["clients"]["rows"] == RunReader("run", folder).state()["clients"]["rows"]
    ), "the newest round was written again"
    # Another process repeats rounds 5 to 8.
    with EventLog(folder / "events.jsonl", "run") as log:
        log.write(RunStarted("run", 4, 8, 1, 10, "CPU", ()))
    for round_idx in range(5, 9):
        add(round_idx, 5.0)
    whole = RunReader("run", folder).state()
    assert reader.state() == whole
    assert {row["loss"] for row in whole["clients"]["rows"]} == {5.0}, "in the last round"


def test_clients_slots_and_faults(tmp_path: Path) -> None:
    fault = {"round_idx": 1, "attempt": 1, "kind": "died", "message": "m", "lost_s": 1.5}
    faults = [
        {**fault, "client_id": 1, "final": False},
        {**fault, "client_id": 3, "final": True},
        {**fault, "client_id": None, "final": False, "kind": "driver"},
    ]
    shown = RunReader("run", write_run(tmp_path, "run", clients=CLIENTS, faults=faults)).state()
    assert shown["last"]["round_idx"] == 2
    assert [(bar["client_id"], bar["slot"]) for bar in shown["last"]["bars"]] == [(0, 0), (2, 0)]
    rows = {row["client_id"]: row for row in shown["clients"]["rows"]}
    assert [(i, r["rounds"], r["last_round"], r["faults"]) for i, r in rows.items()] == [
        (0, 2, 2, 0), (1, 1, 1, 1), (2, 1, 2, 0), (3, 0, None, 1),
    ]  # fmt: skip
    assert (rows[0]["mean_s"], rows[0]["loss"], rows[1]["loss"]) == (1.5, 0.5, 1.0)
    assert shown["faults"]["num"] == 3
    assert shown["last"]["absent"] == [], "nobody knows, without a configuration"
    assert [row["kind"] for row in shown["faults"]["rows"]] == ["driver", "died", "died"]


def test_what_a_process_did_that_died_is_not_counted(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", status="running", done=1, clients=CLIENTS)
    report = ClientReport(5, 2, 12, 3, 0.25, 0.25, 1.5)
    started = RunStarted("run", 1, 2, 10, 4, "CPU", ())
    with EventLog(folder / "events.jsonl", "run") as log:
        log.write(ClientFinished(report, 1, 3))
        log.write(started)
        log.write(ClientFinished(replace(report, client_id=7), 1, 3))
        log.write(Fault(2, 8, "timeout", "m", final=True))
    now = RunReader("run", folder).state()["now"]
    states = {own["client_id"]: own["state"] for own in now["clients"]}
    assert states == {7: "finished", 8: "timeout, given up"}
    assert (now["num_finished"], now["num_sampled"]) == (1, 3)


def test_frames_with_their_psnr(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run")
    gt = moving_texture(1, 48, 64)[0]
    write_frames(folder, "b", np.clip(gt.astype(int) + 5, 0, 255).astype(np.uint8), gt)
    (folder / "frames" / "a_002_sr.png").write_bytes(b"still being copied")
    reader = RunReader("r/1", folder)
    (scene,) = reader.frames()["frames"]
    assert (scene["name"], scene["width"], scene["height"]) == ("b, frame 2", 64, 48)
    bicubic, network, truth = scene["pictures"]
    assert network["psnr_db"] > 33 > bicubic["psnr_db"]
    assert truth["psnr_db"] is None
    assert network["url"].startswith("frame?id=r%2F1&name=b_002_sr.png&changed=")
    for kind in ("bicubic", "gt"):
        (folder / "frames" / f"a_002_{kind}.png").write_bytes(b"no picture")
    shown = reader.frames()
    assert shown["frames"] == []
    assert "cannot identify image file" in shown["errors"][0]


@pytest.mark.parametrize("name", ["clients", "evaluations", "rounds", "runs"])
def test_a_damaged_table_is_a_line_and_the_others_are_shown(tmp_path: Path, name: str) -> None:
    folder = write_run(tmp_path, "run", clients=CLIENTS)
    damage(folder / f"{name}.parquet")
    shown = RunReader("run", folder).state()
    (line,) = shown["errors"]
    assert line.startswith(f"{name}.parquet is damaged")
    assert "\n" not in line
    assert shown["status"] == ("damaged" if name == "runs" else "finished")
    assert bool(shown["charts"]["panels"]) is True
    json.dumps(shown, allow_nan=False)


def test_tables_that_no_version_writes_are_a_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "run", clients=CLIENTS)
    table = pq.read_table(folder / "rounds.parquet").to_pylist()
    for row in table:
        row["round_idx"] = None
    schema = pq.read_schema(folder / "rounds.parquet")
    pq.write_table(pa.Table.from_pylist(table, schema), folder / "rounds.parquet")
    shown = RunReader("run", folder).state()
    assert shown["status"] == "damaged"
    assert shown["errors"][0].startswith("its tables cannot be shown: ")


def test_a_cut_off_log_is_read_from_its_first_whole_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLog(tmp_path / "events.jsonl", "r") as log:
        for i in range(50):
            log.write(Fault(i, None, "driver", "m"))
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"event": "Fau')
    monkeypatch.setattr(eventlog, "_TAIL_BYTES", 2000)
    events = eventlog.last_events(tmp_path)
    assert [event["round_idx"] for event in events] == list(range(50 - len(events), 50))
    assert 3 < len(events) < 20
    assert eventlog.log(events)[0]["text"] == "round 49: driver: m; retried"


def test_a_run_of_another_version_shows_no_drawn_clients() -> None:
    empty = SCHEMAS["partition"].empty_table()
    assert clients.drawn(1, {"federation": {"unknown": 1}}, empty, 0) is None
    assert clients.drawn(1, {}, empty, 4) is None
