from __future__ import annotations

from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.records import read_run
from fedvsr.tuning.config import SweepConfig
from fedvsr.tuning.progress import best_of, write_best
from fedvsr.tuning.table import (
    Note,
    column_of,
    history,
    read_trials,
    reported,
    row_of,
    write_trials,
)
from tests.integration.running import run_serially


@pytest.fixture(scope="module")
def finished(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = load_config(str(small_yaml), ["algorithm.name=fedavg"])
    folder = run_serially(config, tmp_path_factory.mktemp("runs"))
    Note({"algorithm.name": "fedavg"}, 2, "t_1").write(folder)
    return folder


def test_a_finished_trials_row_has_the_scores_of_its_run(finished: Path) -> None:
    run = read_run(finished)
    assert run is not None
    row = row_of("s", 3, {"algorithm.name": "fedavg"}, 3, finished)
    scores = (
        pd.read_parquet(finished / "evaluations.parquet").groupby("round_idx")["psnr_db"].mean()
    )
    assert row["status"] == "finished"
    assert (row["round_idx"], row["num_rounds"], row["attempts"]) == (3, 3, 2)
    assert row["psnr_db"] == pytest.approx(run["psnr_db"])
    assert row["psnr_db"] == pytest.approx(scores.iloc[-1])
    assert row["best_psnr_db"] == pytest.approx(scores.max())
    assert row["best_round_idx"] == scores.idxmax()
    assert row["test_set"] == "held-out"
    assert row["held-out.psnr_db"] == pytest.approx(row["psnr_db"]), "there is one test set"
    assert row["rounds_s"] > 0
    assert row["error"] is None


def test_no_mean_mixes_two_test_sets(finished: Path, tmp_path: Path) -> None:
    scores = pd.read_parquet(finished / "evaluations.parquet")
    (tmp_path / "run").mkdir()
    for path in finished.glob("*.parquet"):
        (tmp_path / "run" / path.name).write_bytes(path.read_bytes())
    # Each clip once more, 1 dB better, as a second set.
    other = scores.assign(psnr_db=scores["psnr_db"] + 1, clip_id="other", test_set="other")
    both = pd.concat([scores, other]).sort_values("round_idx", kind="stable")
    schema = pq.read_schema(finished / "evaluations.parquet")
    pq.write_table(
        pa.Table.from_pandas(both, schema=schema, preserve_index=False),
        tmp_path / "run" / "evaluations.parquet",
    )
    for entry in history(tmp_path / "run"):
        sets = entry["test"]
        assert list(sets) == ["held-out", "other"]
        assert sets["other"]["psnr_db"] == pytest.approx(sets["held-out"]["psnr_db"] + 1)
        assert reported(entry)["psnr_db"] == sets["held-out"]["psnr_db"], "the first set's"


def test_a_trial_that_has_not_started_is_pending(small_yaml: Path, tmp_path: Path) -> None:
    row = row_of("s", 0, {"a": 1}, 3, tmp_path / "none")
    assert (row["status"], row["round_idx"], row["a"]) == ("pending", 0, 1)


def test_every_column_is_described_and_typed(finished: Path, tmp_path: Path) -> None:
    rows = [
        row_of("s", 0, {"x": 1, "y": 0.5, "z": "w", "m": 1}, 3, finished),
        row_of("s", 1, {"x": 2, "y": 1, "z": "v", "m": "reds4"}, 3, tmp_path / "pending"),
    ]
    path = tmp_path / "trials.parquet"
    write_trials(path, rows, ["x", "y", "z", "m"])
    schema = pq.read_schema(path)
    assert all(field.metadata[b"description"] for field in schema)
    kinds = [str(schema.field(name).type) for name in ("x", "y", "z", "m")]
    assert kinds == ["int64", "double", "string", "string"]
    table = read_trials(path)
    assert table["m"].tolist() == ["1", "reds4"]
    assert table["held-out.best_ssim"].isna().tolist() == [False, True]
    with pytest.raises(UserError, match="there is no sweep at"):
        read_trials(tmp_path / "nowhere" / "trials.parquet")


def test_the_best_trial_is_a_finished_one_and_its_file_loads(
    finished: Path, tmp_path: Path
) -> None:
    sweep = SweepConfig.model_validate(
        {"name": "s", "base": "demo", "space": {"local.lr": {"grid": [1]}}}
    )
    rows = [
        {"trial": 0, "status": "finished", "psnr_db": 29.0},
        {"trial": 1, "status": "stopped_early", "psnr_db": 31.0},
        {"trial": 2, "status": "finished", "psnr_db": 30.0},
        {"trial": 3, "status": "failed", "psnr_db": 32.0},
        {"trial": 4, "status": "pending"},
    ]
    assert [row["trial"] for row in best_of(rows, sweep)] == [2, 0, 1]
    lowest = sweep.model_copy(update={"mode": "min"})
    assert [row["trial"] for row in best_of(rows, lowest)] == [0, 2, 1]
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / finished.name).symlink_to(finished)
    row = {"trial": 2, "run_id": finished.name, "psnr_db": 30.0, "round_idx": 3}
    best = load_config(str(write_best(sweep, row, tmp_path)))
    assert best.config_hash() == load_config(str(finished / "config.yaml")).config_hash()
    assert best.name == "s-best"


def test_the_column_of_a_metric() -> None:
    assert column_of("psnr_db") == "psnr_db"
    assert column_of("test/REDS4/ssim") == "REDS4.ssim"
