from __future__ import annotations

import json
import math
from pathlib import Path

from fedvsr.federation.executors import Fault
from fedvsr.federation.rounds import ClientFinished
from fedvsr.messages import ClientReport
from fedvsr.runs.events import EventLog


def read(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_an_event_with_run_round_and_client(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    report = ClientReport(7, 2, 12, 3, math.nan, 0.5, 1.0)
    with EventLog(path, "r") as log:
        log.write(ClientFinished(report, 1, 4))
        log.write(Fault(2, 5, "died", "client 5 died"))
    client, fault = read(path)
    assert (client["run_id"], client["round_idx"], client["client_id"]) == ("r", 2, 7)
    assert (client["event"], client["loss"], client["num_sampled"]) == ("ClientFinished", None, 4)
    assert (fault["event"], fault["kind"], fault["client_id"]) == ("Fault", "died", 5)


def test_a_line_that_was_cut_off_spoils_none_after_it(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_text('{"event": "Fault"}\n{"event": "Fau')
    with EventLog(path, "r") as log:
        log.write(Fault(1, None, "driver", "m"))
    first, cut, last = path.read_text().splitlines()
    assert json.loads(first)["event"] == "Fault"
    assert cut == '{"event": "Fau'
    assert json.loads(last)["message"] == "m"
