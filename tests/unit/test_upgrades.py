"""Tables of older versions are read as the newest one has them."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedvsr import load_results
from fedvsr.data.config import REDS4
from fedvsr.data.testsets import VID4
from fedvsr.journal import Entry, Journal
from fedvsr.means import by_test_set, headline, last_evaluation
from fedvsr.records import read_table
from fedvsr.report.gather import gather
from fedvsr.report.tables import main_table
from tests.unit.report.synthetic import write_run

NEW = ("test_set", "psnr_y_db", "ssim_y", "bicubic_psnr_y_db", "bicubic_ssim_y")


def as_version_5(folder: Path, channel: str) -> None:
    """Rewrite a run's tables as version 5 wrote them, with the scores of one channel."""
    for name in ("runs", "rounds", "evaluations"):
        path = folder / f"{name}.parquet"
        table = pq.read_table(path)
        table = table.drop_columns([c for c in NEW if c in table.schema.names])
        if name == "evaluations":
            table = table.append_column("channel", pa.array([channel] * len(table)))
        pq.write_table(table.replace_schema_metadata({"schema_version": "5"}), path)


def reds_and_vid4(tmp_path: Path, luma: bool) -> Path:
    data = {"videos": [], "train": ["reds"], "held_out": "reds4", "test": ["sets/Vid4"]}
    return write_run(
        tmp_path, "old", clips=[*REDS4, *VID4], data=data,
        settings={"evaluation": {"luma": luma}},
        psnr_db=lambda _, clip: 31.0 if clip in REDS4 else 25.0,
    )  # fmt: skip


def test_test_sets_of_an_older_run_are_kept_apart(tmp_path: Path) -> None:
    folder = reds_and_vid4(tmp_path, luma=False)
    as_version_5(folder, "rgb")
    evaluations = read_table(folder, "evaluations")
    assert [name for name, _ in by_test_set(evaluations)] == ["REDS4", "Vid4"]
    means = headline(last_evaluation(evaluations))
    assert (means["test_set"], means["psnr_db"]) == ("REDS4", 31.0)
    assert "psnr_y_db" not in means
    rounds = load_results(tmp_path).rounds
    assert rounds["psnr_db"].notna().all()
    assert rounds["psnr_y_db"].isna().all()


def test_lumas_scores_of_an_older_run_are_lumas(tmp_path: Path) -> None:
    folder = reds_and_vid4(tmp_path, luma=True)
    as_version_5(folder, "y")
    results = load_results(tmp_path)
    for table in (results.evaluations, results.rounds):
        assert table["psnr_db"].isna().all()
        assert table["psnr_y_db"].notna().all()
    assert results.evaluations["bicubic_ssim_y"].tolist() == [0.29] * 24
    cells = main_table(gather(results))
    assert set(cells["metric"]) == {"psnr_y_db", "ssim_y"}, "shown, because there is no other"
    last = cells[(cells["method"] == "FedAvg") & (cells["metric"] == "psnr_y_db")]
    assert dict(zip(last["testset"], last["mean"], strict=True)) == {"REDS4": 31.0, "Vid4": 25.0}
    assert last["paper"].isna().all(), "the paper's values are of RGB"


@pytest.mark.parametrize("channel", ["rgb", "y"])
def test_rows_in_the_journal_of_an_older_run_are_upgraded_too(tmp_path: Path, channel: str) -> None:
    folder = reds_and_vid4(tmp_path, luma=channel == "y")
    as_version_5(folder, channel)
    row = {"run_id": "old", "round_idx": 3, "num_frames": 3, "psnr_db": 30.0, "ssim": 0.5}
    rows = [{**row, "clip_id": clip, "channel": channel} for clip in REDS4]
    of_round = {key: row[key] for key in ("run_id", "round_idx", "psnr_db", "ssim")}
    Journal(folder).append(Entry(1, 3, {"evaluations": rows, "rounds": [of_round]}))
    column, other = ("psnr_y_db", "psnr_db") if channel == "y" else ("psnr_db", "psnr_y_db")
    for name in ("evaluations", "rounds"):
        added = last_evaluation(read_table(folder, name))
        assert set(added[column].to_pylist()) == {30.0}
        assert set(added[other].to_pylist()) == {None}
    sets = last_evaluation(read_table(folder, "evaluations"))["test_set"]
    assert set(sets.to_pylist()) == {"REDS4"}
