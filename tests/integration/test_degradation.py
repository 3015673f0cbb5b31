"""Clients whose low-resolution frames are made in different ways."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from fedvsr.config import ExperimentConfig, load_config
from fedvsr.records import load_results
from fedvsr.report.write import write_report
from tests.integration.running import run_serially

SEVERAL = (
    "data.degradation={clean: bi, noisy: [{step: downscale}, {step: gaussian_noise, sigma: 12}]}"
)
ROUNDS = "federation.num_rounds=1"


@pytest.fixture(scope="module")
def config(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> ExperimentConfig:
    cache = tmp_path_factory.mktemp("cache")
    return load_config(str(small_yaml), [SEVERAL, ROUNDS, f"data.cache_dir={cache}"])


@pytest.fixture(scope="module")
def folder(config: ExperimentConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("results")
    local = config.model_dump(mode="json") | {"algorithm": {"name": "local"}}
    for one in (config, ExperimentConfig.model_validate(local)):
        run_serially(one, out)
    return out


def test_each_clip_is_scored_under_each_degradation(folder: Path) -> None:
    results = load_results(folder)
    runs = results.runs.set_index("algorithm")
    assert set(runs["num_test_clips"]) == {1}
    rows = results.evaluations[results.evaluations["run_id"] == runs.loc["fedvsr", "run_id"]]
    last = rows[rows["round_idx"] == 1].set_index("degradation")
    assert sorted(last.index) == ["clean", "noisy"]
    assert last["clip_id"].nunique() == 1
    # Noise costs bicubic enlargement some decibels, and no run trains that away in a round.
    assert last.loc["clean", "bicubic_psnr_db"] > last.loc["noisy", "bicubic_psnr_db"] + 1
    assert last.loc["clean", "psnr_db"] > last.loc["noisy", "psnr_db"] + 1
    # The round's mean is over both.
    rounds = results.rounds[results.rounds["run_id"] == runs.loc["fedvsr", "run_id"]]
    mean = rounds.set_index("round_idx")["psnr_db"][1]
    assert mean == pytest.approx(last["psnr_db"].mean())
    # Where each client has a network, each is scored under each.
    own = results.evaluations[results.evaluations["run_id"] == runs.loc["local", "run_id"]]
    counts = own[own["round_idx"] == 1].groupby("client_id")["degradation"].nunique()
    assert set(counts) == {2}
    dealt = results.partition.groupby(["run_id", "client_id"])["degradation"].unique()
    assert sorted(kinds[0] for kinds in dealt[runs.loc["fedvsr", "run_id"]]) == [
        *["clean"] * 2,
        *["noisy"] * 2,
    ]
    names = {path.name for path in folder.glob("*/frames/*.png")}
    assert {name.split("@")[1] for name in names} == {
        f"{kind}_002_{part}.png" for kind in ("clean", "noisy") for part in ("bicubic", "gt", "sr")
    }


def test_the_report_has_tables_by_degradation(folder: Path, tmp_path: Path) -> None:
    files = {path.name: path for path in write_report(folder, tmp_path, ["csv", "md", "png"])}
    cells = pd.read_csv(files["degradations.csv"])
    psnr = cells[(cells["metric"] == "psnr_db") & (cells["method"] == "FedVSR")]
    assert list(psnr["testset"]) == ["held-out: clean", "held-out: noisy"]
    own = pd.read_csv(files["own_degradation.csv"]).set_index("method")
    # The shared network: two clients are clean and two noisy, so own and others' are one mean.
    shared = own.loc["FedVSR"]
    assert shared["own_db"] == pytest.approx(psnr["mean"].mean())
    assert shared["others_db"] == pytest.approx(psnr["mean"].mean())
    assert shared["worst_db"] == pytest.approx(psnr["mean"].min())
    text = files["report.md"].read_text()
    assert "## By degradation" in text
    assert "## Clients' own degradation" in text
    crops = [name for name in files if name.startswith("crops")]
    assert any(name.endswith("clean.png") for name in crops)
    assert any(name.endswith("noisy.png") for name in crops)


def test_the_same_frames_and_bits_come_again(
    config: ExperimentConfig, folder: Path, tmp_path: Path
) -> None:
    again = run_serially(config, tmp_path)
    before, after = (
        load_results(path).evaluations.query("client_id != client_id") for path in (folder, again)
    )
    columns = ["round_idx", "clip_id", "degradation", "psnr_db", "bicubic_psnr_db"]
    pd.testing.assert_frame_equal(
        before[columns].reset_index(drop=True), after[columns].reset_index(drop=True)
    )


def test_clips_are_restored_without_enlarging_them(
    config: ExperimentConfig, tmp_path: Path
) -> None:
    settings = config.model_dump(mode="json")
    settings["model"]["scale"] = settings["data"]["scale"] = 1
    settings["data"]["degradation"] = [{"step": "h264", "qp": 40}]
    folder = run_serially(ExperimentConfig.model_validate(settings), tmp_path)
    rows = load_results(folder).evaluations
    assert set(rows["degradation"]) == {"steps"}
    # Before training, the network gives its input, which is the baseline.
    first = rows[rows["round_idx"] == 0]
    pd.testing.assert_series_equal(first["psnr_db"], first["bicubic_psnr_db"], check_names=False)
