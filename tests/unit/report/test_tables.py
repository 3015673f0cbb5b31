from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest

from fedvsr import load_results
from fedvsr.data.config import REDS4
from fedvsr.data.testsets import VID4
from fedvsr.errors import UserError
from fedvsr.report import papers, prose, tables
from fedvsr.report.content import read
from fedvsr.report.gather import gather
from fedvsr.report.render import grid, legend, render
from tests.unit.report.synthetic import write_run


def cell(cells: pd.DataFrame, metric: str = "psnr_db", **labels: str) -> pd.Series:
    chosen = cells[cells["metric"] == metric]
    for name, value in labels.items():
        chosen = chosen[chosen[name] == value]
    assert len(chosen) == 1, chosen
    return chosen.iloc[0]


def test_seeds_are_aggregated_by_mean_and_standard_deviation(tmp_path: Path) -> None:
    for seed, value in ((1, 30.0), (2, 31.0), (3, 35.0)):
        # Round 1 scores higher: the last round counts, not the best one.
        write_run(
            tmp_path,
            f"run-{seed}",
            seed=seed,
            psnr_db=lambda r, clip, v=value: {0: 29, 1: 99, 2: v}[r] + (1 if clip == "b" else -1),
        )
    cells = tables.main_table(gather(load_results(tmp_path)))
    got = cell(cells, method="FedAvg")
    assert got["mean"] == pytest.approx(32)
    # 30, 31, 35 with n - 1: deviations -2, -1, 3; variance 14 / 2.
    assert got["std"] == pytest.approx(7**0.5)
    assert got["num_seeds"] == 3
    assert cell(cells, method="bicubic")["mean"] == pytest.approx(29)


def test_cells_show_missing_and_unfinished_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "done")
    write_run(tmp_path, "half", algorithm="fedvsr", done=1, status="running")
    write_run(tmp_path, "begun", algorithm="fedprox", done=0, status="running")
    write_run(tmp_path, "more", partition="more")
    write_run(tmp_path, "seed2", seed=2, partition="more", done=0, status="failed")
    cells = tables.main_table(gather(load_results(tmp_path)))
    half = cell(cells, method="FedVSR", heterogeneity="less")
    assert half["mean"] == 31
    assert half["state"] == "running, round 1 of 2"
    begun = cell(cells, method="FedProx", heterogeneity="less")
    assert pd.isna(begun["mean"])
    table = grid(cells, "md")
    columns = [(labels[0], labels[2]) for labels in table.columns]
    fedprox = table.cells[table.rows.index(("tiny (demo)", "FedProx"))]
    text = dict(zip(columns, fedprox, strict=True))
    assert text["heterogeneity: less", "PSNR (dB)"] == "running, round 0 of 2"
    assert text["heterogeneity: more", "PSNR (dB)"] == "–"  # noqa: RUF001
    partly = cell(cells, method="FedAvg", heterogeneity="more")
    assert partly["state"] == "1 of 2 seeds; failed, round 0 of 2"
    assert partly["mean"] == 32
    assert not cells["best"].any(), "a single finished method does not compete"


def test_the_best_and_what_is_within_its_deviation_are_bold(tmp_path: Path) -> None:
    values = {
        # Mean 31.1, standard deviation 0.14; FedProx is within it, FedAvg is not.
        "fedvsr": (31.0, 31.2),
        "fedprox": (31.0, 31.0),
        "fedavg": (30.9, 30.9),
        "centralized": (40.0, 40.0),
    }
    for i, (algorithm, of_seed) in enumerate(values.items()):
        for seed, value in enumerate(of_seed):
            write_run(
                tmp_path, f"{algorithm}{seed}", algorithm=algorithm, seed=seed,
                psnr_db=lambda *_, v=value: v, lpips=v_(i),
            )  # fmt: skip
    cells = tables.main_table(gather(load_results(tmp_path)))
    best = cells[cells["best"]]
    assert best[best["metric"] == "psnr_db"]["method"].tolist() == ["FedProx", "FedVSR"]
    assert best[best["metric"] == "lpips"]["method"].tolist() == ["FedVSR"], "smaller is better"
    order = cells["method"].drop_duplicates().tolist()
    assert order == ["bicubic", "FedAvg", "FedProx", "FedVSR", "centralized"]
    markdown = render(grid(cells, "md"), "md")
    assert "| tiny (demo) | FedVSR | **31.10 ± 0.14** | **0.3110 ± 0.0014** |" in markdown
    latex = render(grid(cells, "tex"), "tex")
    assert r"FedVSR & \textbf{31.10 $\pm$ 0.14}" in latex
    assert r"\toprule" in latex
    assert "<strong>31.10 ± 0.14</strong>" in render(grid(cells, "html"), "html")
    assert "Mean ± standard deviation over seeds" in legend(cells)


def test_one_seed_makes_nothing_bold_and_no_mean(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", algorithm="fedvsr", psnr_db=lambda *_: 40.0)
    write_run(tmp_path, "b2", algorithm="fedvsr", seed=2, psnr_db=lambda *_: 40.0)
    cells = tables.main_table(gather(load_results(tmp_path)))
    assert not cells["best"].any(), "FedAvg has one seed"
    alone = cells[cells["algorithm"] == "fedavg"]
    assert legend(alone) == "Each number is of one seed."


def v_(i: int) -> float:
    return 0.1 * (i + 1)


def test_different_settings_have_names_and_repeats_are_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "one", settings={"local": {"lr": 1e-3, "num_workers": 0}})
    write_run(tmp_path, "two", seed=2, settings={"local": {"lr": 1e-3, "num_workers": 4}})
    write_run(tmp_path, "other", settings={"local": {"lr": 5e-4, "num_workers": 0}})
    write_run(tmp_path, "again", settings={"local": {"lr": 1e-3, "num_workers": 2}}, minutes=5)
    write_run(tmp_path, "dead", done=1, status="failed", minutes=9,
              settings={"local": {"lr": 1e-3, "num_workers": 2}})  # fmt: skip
    gathered = gather(load_results(tmp_path))
    assert sorted(gathered.runs["run_id"]) == ["again", "other", "two"]
    assert sorted(note.split()[0] for note in gathered.notes) == ["dead", "one"]
    cells = tables.main_table(gathered)
    assert cell(cells, method="FedAvg (local.lr=0.001)")["num_seeds"] == 2
    assert cell(cells, method="FedAvg (local.lr=0.0005)")["num_seeds"] == 1


def test_many_different_settings_have_a_short_name_and_a_note(tmp_path: Path) -> None:
    write_run(tmp_path, "one", settings={"local": {"lr": 1e-3, "crop": 64, "steps": 5}})
    write_run(tmp_path, "two", settings={"local": {"lr": 2e-3, "crop": 96, "steps": 8},
                                         "federation": {"clients_per_round": 9}})  # fmt: skip
    gathered = gather(load_results(tmp_path))
    names = sorted(gathered.runs["method"])
    assert all(re.fullmatch(r"FedAvg \([0-9a-f]{6}\)", name) for name in names)
    assert [note.partition(": ")[0] for note in sorted(gathered.notes)] == [
        f"tiny (demo), {name}" for name in names
    ]
    assert "local.crop=96" in "".join(gathered.notes)


def test_the_papers_values_are_shown_and_missing_runs_are_dashes(tmp_path: Path) -> None:
    data = {"videos": [], "train": ["reds"], "held_out": "reds4", "test": ["sets/Vid4"]}
    write_run(
        tmp_path, "r", model="rvrt", size="paper", algorithm="fedvsr", clips=[*REDS4, *VID4],
        data=data, psnr_db=lambda r, clip: 31.0 if clip in REDS4 else 26.15,
    )  # fmt: skip
    cells = tables.main_table(gather(load_results(tmp_path)))
    reds = cell(cells, method="FedVSR", testset="REDS4")
    assert reds["model"] == "RVRT"
    assert (reds["mean"], reds["paper"]) == (31.0, 31.49)
    missing = cell(cells, method="SCAFFOLD", testset="Vid4")
    assert pd.isna(missing["mean"])
    assert missing["paper"] == 24.79
    text = render(grid(cells, "md"), "md")
    assert "31.00 [31.49, −0.49]" in text  # noqa: RUF001
    assert "26.15 [26.05, +0.10]" in text
    assert "– [24.79]" in text  # noqa: RUF001
    latex = render(grid(cells, "tex"), "tex")
    assert r"-- {\scriptsize[24.79]}" in latex
    assert latex.isascii()
    assert "| bicubic | 29.00 [\u2013] |" in text, "the paper has no value for it"


def test_each_form_of_the_paper_stands_beside_its_own_variant(tmp_path: Path) -> None:
    data = {"videos": [], "train": ["reds"], "held_out": "reds4", "test": ["sets/Vid4"]}
    for algorithm in ("fedvsr", "fedvsr_published", "fedavg"):
        write_run(
            tmp_path, algorithm, model="rvrt", size="paper", algorithm=algorithm,
            clips=[*REDS4, *VID4], data=data, lpips=0.2,
        )  # fmt: skip
    gathered = gather(load_results(tmp_path))
    shown = {
        paper: {
            (row["method"], row["metric"]): row["paper"]
            for row in tables.main_table(gathered, paper).to_dict("records")
            if row["testset"] == "REDS4" and not pd.isna(row["paper"])
        }
        for paper in papers.PAPERS
    }
    assert shown["preprint"]["FedVSR", "psnr_db"] == 31.49
    assert shown["published"]["FedVSR (published)", "psnr_db"] == 31.64
    assert shown["published"]["FedVSR (published)", "lpips"] == 0.1377
    assert ("FedVSR (published)", "psnr_db") not in shown["preprint"]
    assert ("FedVSR", "psnr_db") not in shown["published"]
    notes = {p: prose.sections(read(tmp_path, p), "md")[0].after for p in papers.PAPERS}
    assert "The paper's LPIPS is not comparable" in notes["published"]
    assert "LPIPS" not in notes["preprint"]
    assert ("FedAvg", "lpips") not in shown["preprint"], "the preprint has PSNR and SSIM"
    both = [shown[paper]["FedAvg", "psnr_db"] for paper in papers.PAPERS]
    assert both == [31.3, 31.3]
    assert shown["published"]["FedMedian", "psnr_db"] == 29.76, "a method without a run"
    rows = tables.margins(tables.main_table(gathered))
    assert set(rows["algorithm"]) == {"fedvsr", "fedvsr_published"}
    assert (rows["num_all"] == 2).all(), "one variant is no rival of the other"
    lines = tables.sentences(tables.main_table(gathered), "published")
    # Over 4 methods x 3 networks x 2 test sets of the published Table 1, PSNR, less.
    assert "The paper's table gives +1.01 and +0.23." in next(
        line for line in lines if "less, PSNR: FedVSR (published)" in line
    )


def test_the_paper_is_compared_only_with_its_own_protocol(tmp_path: Path) -> None:
    data = {"train": ["reds"], "held_out": "reds4", "videos": []}

    def shown(name: str, runs: list[dict[str, dict[str, object]]]) -> list[object]:
        for i, settings in enumerate(runs):
            write_run(
                tmp_path / name, str(i), model="vrt", clips=REDS4,
                settings={k: v for k, v in settings.items() if k != "data"},
                data={**data, **settings.get("data", {})},
            )  # fmt: skip
        cells = tables.main_table(gather(load_results(tmp_path / name)), "published")
        of_avg = cells[(cells["algorithm"] == "fedavg") & (cells["metric"] == "psnr_db")]
        return [None if pd.isna(value) else value for value in of_avg["paper"]]

    clients = [
        {"data": {"num_clients": 40, "clips_per_client": 6}},
        {"data": {"num_clients": 240, "clips_per_client": 1}},
        {"data": {"num_clients": 4, "clips_per_client": 6}},
    ]
    assert sorted(shown("clients", clients), key=str) == [28.23, 29.71, None]
    epochs = [{"local": {"epochs": 1}}, {"local": {"epochs": 5}}]
    assert shown("epochs", epochs) == [29.71, None]
    failures = [{"federation": {"upload_failure_probability": p}} for p in (0.0, 0.25)]
    assert shown("failures", failures) == [29.71, None]
    rates = [{"local": {"lr": lr}} for lr in (1e-4, 4e-4)]
    assert shown("rates", rates) == [None, None], "the paper does not give the rate"


def test_margins_equal_those_by_hand_and_are_compared_with_the_papers(tmp_path: Path) -> None:
    for i, (algorithm, value) in enumerate(
        [("fedavg", 30.0), ("fedprox", 29.0), ("fedvsr", 30.5), ("local", 20.0), ("f_ala", 10.0)]
    ):
        write_run(tmp_path, str(i), algorithm=algorithm, psnr_db=lambda *_, v=value: v)
    gathered = gather(load_results(tmp_path))
    cells = tables.main_table(gathered)
    (row,) = tables.margins(cells[cells["metric"] == "psnr_db"]).to_dict("records")
    assert row["over_all"] == pytest.approx((0.5 + 1.5) / 2), "bounds and ablations do not count"
    assert row["over_second"] == pytest.approx(0.5)
    assert (row["num_all"], row["num_second"]) == (2, 1)
    first, second = tables.sentences(cells)
    assert first.startswith("Heterogeneity less, PSNR: FedVSR is 1.00 dB better than the other")
    assert "The paper states +0.89 and +0.22; its own table gives +0.74 and +0.15." in first
    assert "SSIM" in second
    ablation = tables.ablation_table(gathered)
    assert ablation["method"].drop_duplicates().tolist() == ["FedAvg", "F-ALA", "FedVSR"]


def test_margins_need_finished_runs(tmp_path: Path) -> None:
    write_run(tmp_path, "a")
    write_run(tmp_path, "b", algorithm="fedvsr", done=1, status="running")
    cells = tables.main_table(gather(load_results(tmp_path)))
    assert tables.margins(cells).empty
    assert tables.sentences(cells) == []
    assert tables.ablation_table(gather(load_results(tmp_path))).empty


def test_scores_are_means_over_clients_with_their_own_networks(tmp_path: Path) -> None:
    folder = write_run(tmp_path, "personal", algorithm="local", clips=["a"])
    table = pd.read_parquet(folder / "evaluations.parquet")
    two = pd.concat(
        [table.assign(client_id=0), table.assign(client_id=1, psnr_db=table["psnr_db"] + 1)]
    )
    import pyarrow as pa
    import pyarrow.parquet as pq

    from fedvsr.schemas import SCHEMAS

    pq.write_table(
        pa.Table.from_pandas(two, schema=SCHEMAS["evaluations"], preserve_index=False),
        folder / "evaluations.parquet",
    )
    cells = tables.main_table(gather(load_results(tmp_path)))
    assert cell(cells, method="local")["mean"] == pytest.approx(32.5)


def test_a_folder_without_runs_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there are no runs to report on"):
        gather(load_results(tmp_path))


def test_the_papers_table_is_complete() -> None:
    names = ("fedavg", "fedprox", "scaffold", "fedvsr", "f_hifr", "f_ala", "f_gla")
    assert papers.methods("preprint") == list(names)
    cells = papers.cells("preprint", names)
    assert len(cells) == 3 * 7 * 2 * 2 * 2
    assert cells.groupby("metric")["mean"].agg(["min", "max"]).to_numpy().ravel().tolist() == [
        23.08, 31.49, 0.6441, 0.8908,
    ]  # fmt: skip
    published = papers.methods("published")
    assert set(published) == {*names[:3], "fedmedian", "fedvsr_published", *names[4:]}
    cells = papers.cells("published", published)
    counts = cells.groupby("metric")["mean"].count()
    # LPIPS for all, VMAF for the five methods of Table 1.
    assert counts.to_dict() == {"psnr_db": 96, "ssim": 96, "lpips": 96, "vmaf": 60}
    assert cells[cells["metric"] == "vmaf"]["mean"].agg(["min", "max"]).tolist() == [57.54, 98.94]
    assert cells[cells["metric"] == "lpips"]["mean"].agg(["min", "max"]).tolist() == [
        0.1377,
        0.3018,
    ]


def test_a_row_holds_no_runs_that_differ_in_more_than_the_data(tmp_path: Path) -> None:
    write_run(tmp_path, "less", settings={"local": {"steps": 2}})
    write_run(tmp_path, "skewed", partition="dirichlet", settings={"local": {"steps": 32}})
    write_run(tmp_path, "vsr", algorithm="fedvsr", settings={"local": {"steps": 2}})
    gathered = gather(load_results(tmp_path))
    cells = tables.main_table(gathered)
    shown = cells[cells["mean"].notna() & (cells["algorithm"] == "fedavg")]
    assert set(zip(shown["method"], shown["heterogeneity"], strict=True)) == {
        ("FedAvg (local.steps=2)", "less"), ("FedAvg (local.steps=32)", "dirichlet 0.5"),
    }  # fmt: skip
    assert not gathered.notes, "within each column the settings are equal"


def test_columns_whose_methods_differ_in_other_settings_are_warned_of(tmp_path: Path) -> None:
    write_run(tmp_path, "avg", settings={"local": {"steps": 32}})
    write_run(tmp_path, "vsr", algorithm="fedvsr", settings={"local": {"steps": 2}})
    write_run(tmp_path, "bound", algorithm="local", settings={"local": {"steps": 7}})
    assert gather(load_results(tmp_path)).notes == (
        "tiny (demo), less: not only the methods differ, local.steps is 32 with FedAvg, "
        "2 with FedVSR",
    )


def test_networks_share_no_empty_rows(tmp_path: Path) -> None:
    for lr in (1, 2):
        write_run(tmp_path, f"a{lr}", settings={"local": {"lr": lr}})
    write_run(tmp_path, "b", model="vrt")
    write_run(tmp_path, "c", model="vrt", algorithm="f_ala")
    gathered = gather(load_results(tmp_path))
    cells = tables.main_table(gathered)
    rows = cells[["model", "method"]].drop_duplicates()
    assert rows[rows["model"] == "VRT (demo)"]["method"].tolist() == ["bicubic", "FedAvg"]
    assert len(rows) == 5
    assert set(tables.ablation_table(gathered)["model"]) == {"VRT (demo)"}


def test_runs_without_a_score_are_refused_in_one_line(tmp_path: Path) -> None:
    write_run(tmp_path, "begun", status="running", done=0, clips=())
    with pytest.raises(UserError, match="no run has a score yet"):
        gather(load_results(tmp_path))


def test_an_adapter_is_a_part_of_the_methods_name(tmp_path: Path) -> None:
    network = {"name": "tiny", "size": "demo", "weights": "base.safetensors"}
    for run_id, algorithm, adapter in (
        ("plain", "fedavg", None),
        ("lora", "fedavg", {"kind": "lora", "rank": 8}),
        ("prompts", "fedpr", {"kind": "prompt", "tokens": 20}),
    ):
        settings = {"model": {**network, "adapter": adapter}}
        write_run(tmp_path, run_id, algorithm=algorithm, settings=settings)
    runs = gather(load_results(tmp_path)).runs.set_index("run_id")
    assert runs["method"].to_dict() == {
        "plain": "FedAvg",
        "lora": "FedAvg with LoRA",
        "prompts": "FedPR",
    }
