from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from fedvsr import load_results
from fedvsr.errors import UserError
from fedvsr.metrics.fidelity import psnr
from fedvsr.records import read_results, run_folders
from fedvsr.report import clients, crops, curves, figures, prose, sweep
from fedvsr.report.content import read
from fedvsr.report.gather import gather
from fedvsr.report.overhead import overhead
from fedvsr.report.papers import Paper
from fedvsr.report.prose import sections
from tests.conftest import moving_texture
from tests.unit.report.synthetic import write_frames, write_run


def client(round_idx: int, client_id: int, **more: object) -> dict[str, object]:
    row = {"round_idx": round_idx, "client_id": client_id, "position": 0, "num_steps": 4}
    return {**row, "loss": 0.1, "weight": 0.5, "train_s": 2.0, "input_wait_s": 0.0, **more}


def test_a_curve_is_the_mean_of_the_finished_seeds(tmp_path: Path) -> None:
    for seed in (1, 2):
        write_run(tmp_path, f"s{seed}", seed=seed, psnr_db=lambda r, clip, s=seed: 30.0 + r * s)
    write_run(tmp_path, "s3", seed=3, done=1, status="running", psnr_db=lambda r, clip: 90.0)
    write_run(tmp_path, "v1", algorithm="fedvsr", done=2, num_rounds=5, status="running")
    write_run(tmp_path, "v2", algorithm="fedvsr", seed=2, done=1, num_rounds=5, status="running")
    gathered = gather(load_results(tmp_path))
    points = curves.curve_points(gathered)
    points = points[points["metric"] == "psnr_db"]
    of_fedavg = points[points["method"] == "FedAvg"]
    assert of_fedavg["mean"].tolist() == [30.0, 31.5, 33.0]
    assert of_fedavg["std"].tolist() == pytest.approx([0.0, 0.5**0.5, 2**0.5])
    assert set(of_fedavg["state"]) == {""}
    unfinished = points[points["method"] == "FedVSR"]
    assert unfinished["round_idx"].tolist() == [0, 1], "up to the last round of both seeds"
    assert set(unfinished["state"]) == {"running"}
    figure = curves.draw_curves(points, "tiny (demo)", curves.line_styles(gathered))
    (panel,) = figure.axes
    labels = [line.get_label() for line in panel.get_lines()]
    assert labels == ["FedAvg", "FedVSR (running)", "bicubic"]
    assert panel.get_lines()[0].get_ydata().tolist() == [30.0, 31.5, 33.0]


def test_each_method_has_its_own_line_style(tmp_path: Path) -> None:
    names = ("fedavg", "fedprox", "scaffold", "fednova", "qffl", "moon", "fedsr", "krum", "fedadam")
    for name in (*names, "fedvsr", "f_ala", "local"):
        write_run(tmp_path, name, algorithm=name)
    styles = curves.line_styles(gather(load_results(tmp_path)))
    assert styles["FedVSR"].colour == "#0072B2"
    assert len(set(styles.values())) == 12


def test_the_crop_is_where_methods_differ_most_and_shows_its_own_psnr(tmp_path: Path) -> None:
    gt = moving_texture(1, 96, 160)[0]
    near, far = gt.copy(), gt.copy()
    far[40:60, 100:120] = 255 - far[40:60, 100:120]
    for algorithm, picture in (("fedavg", far), ("fedvsr", near)):
        for seed in (1, 2):
            folder = write_run(tmp_path, f"{algorithm}-{seed}", algorithm=algorithm, seed=seed)
            if (algorithm, seed) != ("fedvsr", 1):
                write_frames(folder, "a", picture, gt)
    results, folders = read_results(run_folders(tmp_path), tmp_path)
    frames = list(crops.frames(gather(results), folders))
    (frame,) = frames
    assert frame.seed == 2, "both methods have pictures of this seed"
    assert list(frame.methods) == ["FedAvg", "FedVSR"]
    _, crop = crops.choose(frames) or pytest.fail("no crop")
    assert crop.size == 32
    assert crop.x <= 100 < 120 <= crop.x + crop.size
    assert crop.y <= 40 < 60 <= crop.y + crop.size
    figure = crops.draw_crops(frame, crop)
    captions = {axes.get_title(): axes.get_xlabel() for axes in figure.axes}
    assert captions["FedVSR"] == "inf dB"
    psnr_db = float(psnr(crop.of(far), crop.of(gt)))
    assert captions["FedAvg"] == f"{psnr_db:.2f} dB"
    assert captions["Ground truth"] == ""

    by_hand = crops.Crop(0, 0, 40)
    assert crops.choose(frames, by_hand, "a") == (frame, by_hand)
    assert crops.choose(frames, None, "elsewhere") is None
    with pytest.raises(UserError, match=r"--crop 150,0,40 leaves the frame of a, .* 160 x 96"):
        crops.choose(frames, crops.Crop(150, 0, 40))


def test_slots_follow_each_other_by_the_gaps_recorded(tmp_path: Path) -> None:
    rows = [
        client(1, 0, slot=0, started_s=0.0),
        client(1, 1, slot=1, started_s=0.5, train_s=1.0),
        client(2, 2, slot=0, started_s=0.25),
    ]
    folder = write_run(tmp_path, "run", clients=rows)
    rounds = pd.read_parquet(folder / "rounds.parquet").query("round_idx > 0")
    bars = clients.gantt(pd.DataFrame(rows), rounds.assign(gap_s=[0.2, 0.75]))
    # The first round takes 2 s (synthetic), then the gap, then its own wait.
    assert bars["start_s"].tolist() == [0.0, 0.5, 2 + 0.75 + 0.25]
    # 2 + 1 + 2 seconds of work in 2 slots from 0 to 5.
    assert clients.busy(bars) == pytest.approx(5 / (5 * 2))
    without = clients.gantt(pd.DataFrame(rows), rounds)
    assert without["start_s"].iloc[-1] == 2 + (0.5 + 1.0) + 0.25, (
        "aggregation and scoring took this long"
    )
    serial = pd.DataFrame(rows).assign(slot=None, started_s=None)
    assert clients.gantt(serial, rounds).empty


def test_the_client_view_shows_what_was_recorded(tmp_path: Path) -> None:
    rows = [client(r, c, slot=c % 2, started_s=0.0, loss=r + c) for r in (1, 2) for c in (0, r)]
    died = {"client_id": 1, "kind": "died", "final": False}
    faults = [
        {"round_idx": 1, **died, "message": "m", "lost_s": 2},
        {"round_idx": 2, **died, "message": "n", "lost_s": 3},
        {"round_idx": 2, "client_id": None, "kind": "driver", "final": True, "lost_s": 0.5},
    ]
    write_run(tmp_path, "run", clients=rows, faults=faults)
    write_run(tmp_path, "bare", algorithm="local", clients=[client(1, 0, weight=None)])
    results = load_results(tmp_path)
    figure = clients.draw_clients(results, "run", "t")
    titles = {axes.get_title() or axes.get_title(loc="left"): axes for axes in figure.axes}
    heat = np.asarray(titles["Local loss"].get_images()[0].get_array())
    assert heat.shape == (4, 2)
    assert np.nansum(heat) == 1 + 2 + 2 + 4
    assert any(title.startswith("Slots: busy") for title in titles)
    assert [bar.get_height() for bar in titles["Participation"].patches] == [2, 1, 1, 0]
    bare = clients.draw_clients(results, "bare", "t")
    titles = {axes.get_title() or axes.get_title(loc="left") for axes in bare.axes} - {""}
    assert titles == {
        "Local loss", "Participation", "Time per client and round",
        "Bytes between server and clients",
    }  # fmt: skip
    counted = clients.fault_rows(results).set_index("kind")
    assert counted.loc["died", ["count", "lost_s", "message"]].tolist() == [2, 5.0, "n"]
    assert counted.loc["driver", "final"]


def test_cost_is_relative_to_fedavg_on_the_same_device(tmp_path: Path) -> None:
    write_run(tmp_path, "avg", clients=[client(1, 0), client(2, 1, train_s=2.4, input_wait_s=0.4)])
    write_run(tmp_path, "vsr", algorithm="fedvsr", clients=[client(1, 0, train_s=3.0)])
    results = load_results(tmp_path)
    table = overhead(results, gather(results)).set_index("method")
    assert table.loc["FedAvg", "step_s"] == pytest.approx(0.5), (
        "waiting for samples is not part of a step"
    )
    assert table.loc["FedVSR", "step_ratio"] == pytest.approx(1.5)
    assert table.loc["FedVSR", "device"] == "CPU, serial"
    alone = gather(results)
    alone = replace(alone, runs=alone.runs[alone.runs["method"] == "FedVSR"])
    assert overhead(results, alone)["step_ratio"].isna().all()


def test_energy_and_gpus_stand_beside_the_papers(tmp_path: Path) -> None:
    gpu = {"energy_j": 40.0, "gpu_memory_bytes": 2**30, "gpu_utilisation": 0.5}
    write_run(tmp_path, "avg", clients=[client(1, 0, **gpu)])
    write_run(tmp_path, "scaffold", algorithm="scaffold",
              clients=[client(1, 0, **gpu | {"energy_j": 50.0})])  # fmt: skip
    write_run(tmp_path, "local", algorithm="local", clients=[client(1, 0)])
    table = overhead(load_results(tmp_path), gather(load_results(tmp_path)), "published")
    row = table.set_index("method").loc["SCAFFOLD"]
    # 4 steps a client; the paper has 11.35 % more energy, and 10.56 % more time.
    assert (row["energy_j"], row["energy_ratio"]) == (12.5, 1.25)
    assert row["paper_energy_ratio"] == pytest.approx(1.1135)
    assert row["paper_step_ratio"] == pytest.approx(1.1056)

    def costs(paper: Paper) -> str:
        (section,) = (s for s in sections(read(tmp_path, paper), "md") if s.title == "Cost")
        return section.table

    text = costs("published")
    assert "| 12.5 J (1.25x) [1.11x] |" in text
    assert "| 1.00 GiB (1.00x) [1.06x] | 50% (1.00x) [1.05x] |" in text
    assert "its energy" in text, "the paper has it"
    (local,) = (line for line in text.splitlines() if "| local |" in line)
    assert local.count("| \u2013 ") == 4, "a dash where nothing was measured"
    assert "its energy" not in costs("preprint"), "neither measured nor in the paper"


def test_bars_hide_the_grid_points_are_whole_and_no_panel_is_empty(tmp_path: Path) -> None:
    write_run(tmp_path, "one", clients=[client(1, 0, weight=None), client(1, 3, weight=None)])
    table = load_results(tmp_path)
    silent = replace(table, rounds=table.rounds.assign(download_bytes=0, upload_bytes=0))
    figure = clients.draw_clients(silent, "one", "t")
    titles = {axes.get_title(): axes for axes in figure.axes}
    assert set(titles) - {""} == {"Local loss", "Participation", "Time per client and round"}
    assert titles["Participation"].get_axisbelow() is True
    assert not any(dots.get_clip_on() for dots in titles["Time per client and round"].collections)


def test_labels_of_parallel_axes_do_not_overprint() -> None:
    values = pd.Series([1.0, 1.001, 1.002, 1.5, 1.999, 2.0])
    labels = sweep._ticks(values, sweep._height(values), None)
    assert [text for text, _ in labels] == ["1", "1.5", "2"]
    many = pd.Series(30 + 0.01 * np.arange(20))
    labels = sweep._ticks(many, sweep._height(many), None)
    assert [text for text, _ in labels] == ["30", "30.038", "30.076", "30.114", "30.152", "30.19"]
    words = pd.Series([f"w{i:02d}" for i in range(40)])
    heights = [height for _, height in sweep._ticks(words, sweep._height(words), None)]
    assert np.diff(heights).min() >= 0.045
    assert (heights[0], heights[-1]) == (0, 1)


@pytest.mark.parametrize(("sign", "text"), [(-1, "gained most"), (1, "lost least")])
def test_the_comparison_says_whether_its_crop_gained_or_lost(
    sign: int, text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = list[Figure]()
    monkeypatch.setattr(figures, "save", lambda figure, path: drawn.append(figure) or path)
    folder = write_run(tmp_path, "one", settings={"evaluation": {"crop": 64}})
    gt = moving_texture(1, 96, 160)[0]
    # Bicubic of the synthetic frames is half as bright as the ground truth.
    write_frames(folder, "b", gt if sign < 0 else gt // 4, gt)
    figures.draw_comparison(folder)
    where, below = drawn[0].get_suptitle().split("; ")
    assert where == "b, middle frame, centred 64-pixel crop"
    assert below == f"below: the 32 x 32 pixels that {text}, enlarged"


def test_one_seed_is_not_called_a_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "one")
    gathered = gather(load_results(tmp_path))
    points, styles = curves.curve_points(gathered), curves.line_styles(gathered)
    assert (
        curves.draw_curves(points, "tiny (demo)", styles).get_suptitle() == "tiny (demo): one seed"
    )
    write_run(tmp_path, "two", seed=2)
    points = curves.curve_points(gather(load_results(tmp_path)))
    title = curves.draw_curves(points, "tiny (demo)", styles).get_suptitle()
    assert title.replace("\n", " ") == (
        "tiny (demo): mean ± standard deviation over seeds; no band: one seed"
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (1.34e-4, "0.134 ms"), (0.9994, "999 ms"), (0.9996, "1.00 s"), (12.5, "12.5 s"),
        (125, "2.08 min"), (6000, "1.67 h"), (1e5, "27.8 h"), (0.0, "0 ms"),
        (float("nan"), "not recorded"),
    ],
)  # fmt: skip
def test_durations_have_no_exponent(seconds: float, text: str) -> None:
    assert prose.duration(seconds) == text
