from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import pytest

from fedvsr import load_results
from fedvsr.errors import UserError
from fedvsr.report.gather import gather
from fedvsr.report.paired import paired_differences
from tests.unit.report.synthetic import write_run

pytest.importorskip("scipy", reason="needs scipy (extra report)")


def row(folder: Path, method: str, reference: str) -> pd.Series:
    table = paired_differences(gather(load_results(folder)))
    chosen = table[
        (table["method"] == method)
        & (table["reference"] == reference)
        & (table["metric"] == "psnr_db")
    ]
    assert len(chosen) == 1
    return chosen.iloc[0]


def test_differences_cancel_the_effects_of_seeds_and_clips(tmp_path: Path) -> None:
    # Seeds differ by 10 dB and clips by 5 dB in both methods; the differences are 1, 2, 3 by seed.
    for seed in (1, 2, 3):
        for algorithm, lead in (("fedavg", 0.0), ("fedvsr", float(seed))):
            write_run(
                tmp_path,
                f"{algorithm}-{seed}",
                algorithm=algorithm,
                seed=seed,
                psnr_db=lambda r, clip, base=10.0 * seed + lead: base + 5 * (clip == "b"),
            )
    got = row(tmp_path, "FedVSR", "FedAvg")
    assert got["difference"] == pytest.approx(2)
    assert (got["num_seeds"], got["num_clips"]) == (3, 2)
    # t(0.975, 2) = 4.302653; standard error 1 / sqrt(3).
    half = 4.302653 / 3**0.5
    assert got["seeds_low"] == pytest.approx(2 - half, abs=1e-5)
    assert got["seeds_high"] == pytest.approx(2 + half, abs=1e-5)
    assert got[["clips_low", "clips_high"]].tolist() == pytest.approx([2, 2]), "no spread"


def test_only_pairs_of_finished_runs_count(tmp_path: Path) -> None:
    value = {"a": 30.0, "b": 31.0}
    write_run(tmp_path, "avg", psnr_db=lambda r, clip: value[clip])
    write_run(tmp_path, "avg-2", seed=2, psnr_db=lambda r, clip: 0.0)
    write_run(
        tmp_path, "vsr", algorithm="fedvsr",
        psnr_db=lambda r, clip: value[clip] + (0.5 if clip == "a" else 1.5),
    )  # fmt: skip
    write_run(tmp_path, "vsr-2", algorithm="fedvsr", seed=2, done=1, status="running")
    got = row(tmp_path, "FedVSR", "FedAvg")
    assert got["difference"] == pytest.approx(1)
    assert (got["num_seeds"], got["num_clips"]) == (1, 2)
    assert pd.isna(got["seeds_low"])
    # t(0.975, 1) = 12.7062; standard deviation 1/sqrt(2), so standard error 0.5.
    assert got["clips_high"] == pytest.approx(1 + 12.7062 * 0.5, abs=1e-3)


def test_ablations_are_compared_with_fedavg_and_fedvsr(tmp_path: Path) -> None:
    for algorithm in ("fedavg", "f_ala", "fedvsr"):
        write_run(tmp_path, algorithm, algorithm=algorithm)
    table = paired_differences(gather(load_results(tmp_path)))
    pairs = set(zip(table["method"], table["reference"], strict=True))
    assert pairs == {("F-ALA", "FedAvg"), ("FedVSR", "FedAvg"), ("FedVSR", "F-ALA")}


def test_each_pair_is_listed_once(tmp_path: Path) -> None:
    for algorithm in ("fedavg", "fedvsr"):
        for lr in (1, 2, 3):
            write_run(tmp_path, f"{algorithm}{lr}", algorithm=algorithm,
                      settings={"local": {"lr": lr}})  # fmt: skip
    table = paired_differences(gather(load_results(tmp_path)))
    pairs = table[table["metric"] == "psnr_db"][["method", "reference"]]
    unordered = [frozenset(pair) for pair in pairs.itertuples(index=False, name=None)]
    assert len(unordered) == len(set(unordered)) == 3 * 3 + 3, "not FedVSR's settings"
    mixed = [(m, r) for m, r in pairs.itertuples(index=False, name=None) if m[:6] != r[:6]]
    assert all(m.startswith("FedVSR") for m, _ in mixed), "FedVSR minus FedAvg"


def test_without_scipy_the_error_names_the_package_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    for algorithm in ("fedavg", "fedvsr"):
        write_run(tmp_path, algorithm, algorithm=algorithm)
    with pytest.raises(UserError, match=r"pip install 'fedvsr\[report\]'"):
        paired_differences(gather(load_results(tmp_path)))
