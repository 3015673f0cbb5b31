"""The metrics that are chosen, from the setting to tables and reports."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fedvsr import load_results, models
from fedvsr.inference.config import EvaluationConfig, MetricName
from fedvsr.lookup import load
from fedvsr.metrics import METRICS, OPTIONAL, columns
from fedvsr.metrics.meter import Meter
from fedvsr.report.gather import gather
from fedvsr.report.paired import paired_differences
from fedvsr.report.render import grid, render
from fedvsr.report.tables import main_table
from fedvsr.schemas import SCHEMAS, SCORES
from fedvsr.training.checkpoint import save_model
from tests.conftest import moving_texture
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.clips import write_pictures
from tests.unit.report.synthetic import write_run


def test_the_registry_agrees_with_the_setting_and_the_tables() -> None:
    assert tuple(OPTIONAL) == MetricName.__args__
    for schema in (SCHEMAS["evaluations"], SCHEMAS["runs"], SCORES):
        assert set(columns()) <= set(schema.names)
    assert set(METRICS) <= set(SCHEMAS["rounds"].names)
    for column, metric in METRICS.items():
        unit = SCHEMAS["evaluations"].field(column).metadata[b"unit"]
        assert unit == metric.unit.encode(), column
    assert METRICS["vmaf"].text(29.0463) == "29.05"
    assert METRICS["tof_px"].heading == "tOF (px)"


def test_frames_without_chosen_metrics_have_both_channels() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    with Meter() as meter:
        meter.add(frame, frame)
        assert list(meter.means()) == ["psnr_db", "ssim", "psnr_y_db", "ssim_y"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"metrics": ["lpips", "lpips"]}, "metrics names lpips twice"),
        ({"metrics": ["vmaf"], "crop": 48}, "crop = 48 must be at least 64 for vmaf"),
        ({"metrics": ["vmfa"]}, "'lpips', 'dists', 'vmaf' or 'tof'"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EvaluationConfig.model_validate(settings)


def test_evaluate_adds_what_is_chosen(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("imageio_ffmpeg", reason="needs the extra metrics")
    pytest.importorskip("cv2", reason="needs the extra metrics")
    config = load("fedvsr.models", "tiny").Config(channels=4, blocks=0)
    save_model(tmp_path / "tiny.safetensors", models.build_fresh(config), config)
    write_pictures(tmp_path / "gt" / "a", moving_texture(4, 64, 80))
    command = ["evaluate", str(tmp_path / "tiny.safetensors"), str(tmp_path / "gt")]
    out = tmp_path / "s.parquet"
    assert fedvsr(*command, "--metrics", "vmaf, tof", "--out", str(out)) == 0
    printed = capsys.readouterr().out
    (row,) = pd.read_parquet(out).to_dict("records")
    assert 0 < row["vmaf"] < 100
    assert 0 < row["tof_px"] < 1
    # An untrained network is bicubic.
    assert row["bicubic_vmaf"] == pytest.approx(row["vmaf"], abs=1e-3)
    for text in (f"{row['vmaf']:.2f}", f"{row['tof_px']:.4f} px", "bicubic VMAF", "tOF"):
        assert text in printed
    assert pd.isna(row["lpips"])
    assert fedvsr(*command, "--metrics", "vmfa") == 2
    assert "vmfa is not one of them; did you mean 'vmaf'?" in capsys.readouterr().err
    assert fedvsr(*command, "--metric-weights", str(tmp_path / "none")) == 2
    assert "there is no such folder" in capsys.readouterr().err
    write_pictures(tmp_path / "small" / "a", moving_texture(2, 48, 80))
    command[2] = str(tmp_path / "small")
    assert fedvsr(*command, "--metrics", "vmaf") == 2
    assert (
        "vmaf needs frames of 64 pixels a side, and these have 80 x 48" in capsys.readouterr().err
    )


def test_a_run_records_what_is_chosen(small_yaml: Path, tmp_path: Path) -> None:
    pytest.importorskip("cv2", reason="needs the extra metrics")
    settings = ["evaluation.metrics=[tof]", "federation.num_rounds=1"]
    flags = [flag for setting in settings for flag in ("--set", setting)]
    command = ["run", str(small_yaml), *flags, "--executor", "serial"]
    assert fedvsr(*command, "--out", str(tmp_path)) == 0
    results = load_results(tmp_path)
    last = results.evaluations[results.evaluations["round_idx"] == 1]
    for table in (results.rounds[results.rounds["round_idx"] == 1], results.runs):
        assert table["tof_px"].tolist() == pytest.approx([last["tof_px"].mean()])
    assert results.evaluations["bicubic_tof_px"].gt(0).all()
    assert results.evaluations["vmaf"].isna().all()
    (folder,) = tmp_path.glob("*/config.yaml")
    out = tmp_path / "again.parquet"
    assert fedvsr("evaluate", str(folder.parent), "--out", str(out)) == 0
    again = pd.read_parquet(out)
    assert again["tof_px"].tolist() == last["tof_px"].tolist(), "the run's own metrics"


def test_reports_take_names_and_directions_from_the_registry(tmp_path: Path) -> None:
    for algorithm, lead in (("fedavg", 0.0), ("fedvsr", 0.1)):
        for seed in (1, 2):
            folder = write_run(tmp_path, f"{algorithm}{seed}", algorithm=algorithm, seed=seed)
            path = folder / "evaluations.parquet"
            scored = pd.read_parquet(path).assign(vmaf=50 + lead, tof_px=0.5 + lead)
            scored.assign(bicubic_vmaf=40.0, bicubic_tof_px=1.0).to_parquet(path)
            _restore(path)
    gathered = gather(load_results(tmp_path))
    assert gathered.metrics == ("psnr_db", "ssim", "vmaf", "tof_px")
    cells = main_table(gathered)
    best = cells[cells["best"]]
    assert best[best["metric"] == "vmaf"]["method"].tolist() == ["FedVSR"], "higher is better"
    assert best[best["metric"] == "tof_px"]["method"].tolist() == ["FedAvg"], "lower is better"
    latex = render(grid(cells, "tex"), "tex")
    assert "VMAF & tOF (px)" in latex
    assert r"\textbf{50.10 $\pm$ 0.00}" in latex
    pytest.importorskip("scipy", reason="needs scipy (extra report)")
    differences = paired_differences(gathered).set_index("metric")["difference"]
    assert differences["vmaf"] == pytest.approx(0.1)
    chosen = gather(load_results(tmp_path), ["ssim_y", "vmaf"]).metrics
    assert chosen == ("ssim_y", "vmaf")


def _restore(path: Path) -> None:
    """Give a table that pandas wrote its schema back."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = SCHEMAS["evaluations"]
    table = pa.Table.from_pandas(pd.read_parquet(path), schema=schema, preserve_index=False)
    pq.write_table(table.replace_schema_metadata(schema.metadata), path)
