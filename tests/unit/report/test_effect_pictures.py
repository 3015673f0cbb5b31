"""Pictures of effects and weights: what they show, and that their text is whole."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib.figure import Figure

from fedvsr import load_results
from fedvsr.report.curves import LineStyle, draw_curves, line_styles
from fedvsr.report.effects import effect, judged
from fedvsr.report.forest import draw_forest
from fedvsr.report.gather import gather
from fedvsr.report.render import number
from fedvsr.report.weights import draw_weights, weight_points
from tests.unit.report.synthetic import write_run
from tests.unit.report.test_sweep_pictures import texts_of

# As long as methods get whose settings are part of their names.
LONG = "FedVSR (published) (local.batch_size=1, local.steps=80)"


def require_whole_text(figure: Figure) -> None:
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts_of(figure)]
    for text, box in boxes:
        assert box.x0 >= -1, f"{text!r} is cut off"
        assert box.x1 <= figure.bbox.x1 + 1, f"{text!r} is cut off"
        assert box.y0 >= -1, f"{text!r} is cut off"
        assert box.y1 <= figure.bbox.y1 + 1, f"{text!r} is cut off"
    for (one, first), (other, second) in combinations(boxes, 2):
        assert not first.padded(-1).overlaps(second), f"{one!r} and {other!r} overlap"


def test_a_forest_has_a_row_per_comparison() -> None:
    pytest.importorskip("scipy", reason="needs scipy (extra report)")
    labels = {"model": "tiny (demo)", "testset": "test (first 3 frames)", "reference": "FedAvg"}
    rows = [
        {**labels, "heterogeneity": heterogeneity, "method": method}
        | effect(mean + np.array([[0.0], [0.01], [0.02]]), 0.05)
        for heterogeneity in ("more", "dirichlet 0.5")
        for method, mean in (("F-GLA", -0.2), ("FedVSR", 0.0), (LONG, 0.2))
    ]
    figure = draw_forest(judged(rows), "tiny (demo)")
    require_whole_text(figure)
    axes = figure.axes[0]
    texts = [label.get_text().replace("\n", " ") for label in axes.get_yticklabels()]
    assert texts == ["F-GLA minus FedAvg", "FedVSR minus FedAvg", f"{LONG} minus FedAvg"]
    assert axes.texts[0].get_text() == f"{number(-0.19, 3)}  lower (3)"
    # The first row is on top.
    assert axes.get_ylim()[0] > axes.get_ylim()[1]
    assert len(figure.axes) == 2


def test_weights_that_are_equal_shares_are_left_out(tmp_path: Path) -> None:
    for algorithm, deviation in (("fedavg", 1e-12), ("f_gla", 0.4), ("fedvsr", 0.2)):
        for seed in (1, 3):
            write_run(tmp_path, f"{algorithm}-{seed}", algorithm=algorithm, seed=seed)
            path = tmp_path / f"{algorithm}-{seed}" / "rounds.parquet"
            table = pq.read_table(path)
            place = table.schema.get_field_index("weights_deviation")
            values = pa.array([None, deviation * seed, deviation * seed / 2])
            pq.write_table(table.set_column(place, table.schema.field(place), values), path)
    results = load_results(tmp_path)
    gathered = gather(results)
    points = weight_points(results, gathered)
    assert set(points["method"]) == {"F-GLA", "FedVSR"}
    first = points[(points["method"] == "FedVSR") & (points["round_idx"] == 1)].iloc[0]
    # 0.2 and 0.6: mean 0.4, deviation 0.4 / sqrt(2).
    assert (first["mean"], first["std"]) == pytest.approx((0.4, 0.4 / 2**0.5))
    figure = draw_weights(points, "tiny (demo)", line_styles(gathered))
    require_whole_text(figure)
    assert len(figure.axes[0].lines) == 2


@pytest.mark.parametrize("num_methods", [1, 8])
def test_long_names_of_one_panel_are_whole_beside_it(num_methods: int) -> None:
    # A setting's name has no place to break it.
    names = [f"F-{i} (federation.upload_failure_probability=0.5)" for i in range(num_methods)]
    points = pd.DataFrame(
        {
            **{"model": "m", "heterogeneity": "more", "method": name, "algorithm": "fedavg"},
            **{"testset": "test", "metric": "psnr_db", "state": "", "bicubic": 0.1},
            **{"round_idx": round_idx, "mean": 0.5, "std": 0.1},
        }
        for name in names
        for round_idx in (1, 2)
    )
    styles = {name: LineStyle("#000000", ()) for name in names}
    for draw in (draw_curves, draw_weights):
        figure = draw(points, "m", styles)
        require_whole_text(figure)
        (legend,) = figure.legends
        shown = [text.get_text().replace("\n", " ") for text in legend.get_texts()]
        assert [label for label in shown if label != "bicubic"] == names


def test_the_last_panel_of_weights_is_not_cut_off() -> None:
    points = pd.DataFrame(
        [
            {
                **{"model": "m", "heterogeneity": label, "method": "F-GLA", "algorithm": "f_gla"},
                **{"round_idx": round_idx, "mean": share, "std": 0.5},
            }
            for label, share in (("less", 0.1), ("more", 2.0))
            for round_idx in (1, 2)
        ]
    )
    figure = draw_weights(points, "m", {"F-GLA": LineStyle("#000000", ())})
    for axes in figure.axes:
        bottom, top = axes.get_ylim()
        assert (bottom, top >= 2.5) == (0, True)
