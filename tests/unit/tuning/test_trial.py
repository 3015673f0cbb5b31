"""What a trial reports to Ray Tune, which here only takes notes."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fedvsr import records
from fedvsr.tuning import trial
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.sweep import expand, save_sweep
from fedvsr.tuning.table import RUNS, history, reported


class Tune:
    """Stands in for `ray.tune` in a trial's process."""

    def __init__(self) -> None:
        self.reported = list[dict[str, Any]]()
        self.Checkpoint = SimpleNamespace(from_directory=self._checkpoint)

    def get_context(self) -> Any:
        return SimpleNamespace(get_trial_id=lambda: "t_1")

    def get_checkpoint(self) -> Any:
        return None

    def report(self, metrics: dict[str, Any], checkpoint: dict[str, Any]) -> None:
        assert checkpoint["round_idx"] == metrics["round_idx"]
        self.reported.append(metrics)

    @staticmethod
    def _checkpoint(path: str) -> Any:
        return json.loads((Path(path) / "reported.json").read_text())


def run(
    small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_rounds: int
) -> tuple[Tune, Path, Counter[str]]:
    """Run a trial; returns what it reported, its run, and how often each table was read."""
    sweep = SweepConfig.model_validate(
        {
            "name": "s",
            "base": str(small_yaml),
            "space": {"algorithm.alpha": {"grid": [1.5]}},
            "set": {"federation.num_rounds": num_rounds, "cluster.clients_per_gpu": "auto"},
            "executor": "serial",
        }
    )
    (tmp_path / RUNS).mkdir(parents=True)
    save_sweep(sweep, tmp_path / "sweep.yaml")
    reads, read = Counter[str](), records.read_table

    def counted(folder: Path, name: str, *which: Any) -> Any:
        reads[name] += 1
        return read(folder, name, *which)

    tune = Tune()
    monkeypatch.setattr(records, "read_table", counted)
    monkeypatch.setattr(trial, "tune", tune)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.chdir(tmp_path)
    (planned,) = expand(sweep)
    constant = {"sweep": str(tmp_path), "cwd": str(tmp_path), "trial": 0}
    trial.run_trial({**constant, **planned.values})
    monkeypatch.undo()
    return tune, tmp_path / RUNS / planned.run_id, reads


def test_a_trial_reports_what_its_tables_hold_and_reads_them_no_more_often_for_more_rounds(
    small_yaml: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads = dict[int, Counter[str]]()
    for num_rounds in (2, 6):
        tune, folder, reads[num_rounds] = run(
            small_yaml, tmp_path / str(num_rounds), monkeypatch, num_rounds
        )
        first, *_ = (folder / "events.jsonl").read_text().splitlines()
        assert "cluster.clients_per_gpu = auto counts as 1 in a sweep, which reserves" in first
        expected = [reported(scores) for scores in history(folder)]
        assert [m["round_idx"] for m in tune.reported] == list(range(num_rounds + 1))
        # The loss before training is not a number, which equals nothing.
        assert math.isnan(tune.reported[0].pop("loss"))
        assert math.isnan(expected[0].pop("loss"))
        assert tune.reported == expected
    assert reads[2] == reads[6]
    assert reads[2]["evaluations"] >= 2, "at the start and at the end"
