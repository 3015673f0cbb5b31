from __future__ import annotations

import threading
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from fedvsr.config import load_config
from fedvsr.runs.run import locked
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.progress import Outcome, TrialMonitor, best_of
from fedvsr.tuning.sweep import expand
from fedvsr.tuning.table import Note, newest_runs
from tests.integration.running import run_serially
from tests.unit.report.synthetic import write_run


def test_tunes_outcomes_are_added_at_the_end(small_yaml: Path, tmp_path: Path) -> None:
    space = {"algorithm.alpha": {"grid": [1, 2, 3, 4, 5]}}
    sweep = SweepConfig.model_validate({"name": "s", "base": str(small_yaml), "space": space})
    trials = expand(sweep)
    (tmp_path / "runs").mkdir()
    # The first has finished; the second was stopped in its round, as a scheduler does.
    for trial in trials[:2]:
        config = trial.config.model_copy(update={"name": "x"})
        made = run_serially(config, tmp_path / "made")
        folder = made.rename(tmp_path / "runs" / trial.run_id)
        Note(dict(trial.values), 1, f"t{trial.index}").write(folder)
    as_running(tmp_path / "runs" / trials[1].run_id)
    monitor = TrialMonitor(sweep, trials, tmp_path, lambda _: None)
    outcomes = [
        Outcome("t0", 0, "TERMINATED", None),
        Outcome("t1", 1, "TERMINATED", None),
        Outcome("t2", 2, "ERROR", "the node burnt"),
        Outcome("t3", 3, "PENDING", None),
    ]
    # Its process is still dying.
    with locked(tmp_path / "runs" / trials[1].run_id):
        rows = monitor.finish(outcomes)
    expected = ["finished", "stopped_early", "failed", "pending", "pending"]
    assert [row["status"] for row in rows] == expected
    table = pd.read_parquet(tmp_path / "trials.parquet")
    assert table["status"].tolist() == expected
    assert table["error"].iloc[2] == "the node burnt"
    assert table["algorithm.alpha"].tolist() == [1, 2, 3, 4, 5]


def as_running(folder: Path) -> None:
    """Its process died: the run's row still says that it runs."""
    table = pq.read_table(folder / "runs.parquet")
    i = table.schema.get_field_index("status")
    pq.write_table(
        table.set_column(i, table.schema.field(i), pa.array(["running"])),
        folder / "runs.parquet",
    )


def test_a_trial_is_shown_while_it_runs(small_yaml: Path, tmp_path: Path) -> None:
    sweep = SweepConfig.model_validate(
        {"name": "s", "base": str(small_yaml), "space": {"algorithm.alpha": {"grid": [1, 2]}}}
    )
    trials = expand(sweep)
    shown = list[list[str]]()
    seen = threading.Event()

    def show(rows: list[dict[str, object]]) -> None:
        shown.append([str(row["status"]) for row in rows])
        if "finished" in shown[-1]:
            seen.set()

    with TrialMonitor(sweep, trials, tmp_path, show):
        config = load_config(str(small_yaml), ["algorithm.alpha=1"])
        folder = run_serially(config, tmp_path / "made")
        Note({"algorithm.alpha": 1}, 1, "t0").write(folder)
        (tmp_path / "runs").mkdir()
        folder.rename(tmp_path / "runs" / trials[0].run_id)
        assert seen.wait(20)
    assert shown[0] == ["pending", "pending"]
    assert shown[-1] == ["finished", "pending"]
    assert (tmp_path / "trials.parquet").exists()


def test_a_damaged_trial_does_not_stop_a_sweep(small_yaml: Path, tmp_path: Path) -> None:
    sweep = SweepConfig.model_validate(
        {"name": "s", "base": str(small_yaml), "space": {"algorithm.alpha": {"grid": [1, 2, 3]}}}
    )
    trials = expand(sweep)
    for trial in trials:
        run = write_run(tmp_path / "runs", trial.run_id)
        (run / "config.yaml").write_text(trial.config.to_yaml())
        Note(dict(trial.values), 1, f"t{trial.index}").write(run)
    runs = [tmp_path / "runs" / trial.run_id for trial in trials]
    (runs[1] / "rounds.parquet").write_bytes(b"PAR1")
    (runs[2] / "trial.json").write_text("{")
    with TrialMonitor(sweep, trials, tmp_path, lambda _: None) as monitor:
        pass
    rows = monitor.finish([Outcome(f"t{i}", i, "TERMINATED", None) for i in range(3)])
    assert [row["status"] for row in rows] == ["finished", "failed", "failed"]
    assert rows[1]["error"].startswith(f"{runs[1]}/rounds.parquet is damaged")
    assert rows[2]["error"].startswith(f"{runs[2]}/trial.json is damaged")
    assert best_of(rows, sweep)[0]["trial"] == 0
    assert list(newest_runs(tmp_path / "runs").values()) == runs[:2]
