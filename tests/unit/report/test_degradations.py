from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from fedvsr.records import Results, load_results
from fedvsr.report.degradations import by_degradation, own_scores
from fedvsr.report.gather import gather
from tests.benchmarks import bench_personal
from tests.unit.report.synthetic import write_run

# Client 0 has three noisy clips and a clean one, client 1 two clean ones.
HELD = [(0, "noisy")] * 3 + [(0, "clean")] + [(1, "clean")] * 2


def results(
    tmp_path: Path,
    scores: list[tuple[int | None, str, float]],
    runs: int = 1,
    algorithm: str = "fedavg",
    num_rounds: int = 0,
) -> Results:
    """Runs of one clip, with scores by client and degradation."""
    for seed in range(runs):
        settings = {"seed": seed, "num_rounds": num_rounds, "algorithm": algorithm}
        write_run(tmp_path, f"{algorithm}{seed}", clips=["a"], **settings)
    read = load_results(tmp_path)
    rows = list[dict[str, Any]]()
    for row in read.evaluations.to_dict("records"):
        for client_id, degradation, psnr_db in scores:
            own = {"client_id": client_id, "degradation": degradation}
            rows.append(row | own | {"psnr_db": psnr_db + row["seed"]})
    partition = [
        {"run_id": f"{algorithm}{seed}", "client_id": client_id, "degradation": degradation}
        for seed in range(runs)
        for client_id, degradation in HELD
    ]
    return replace(read, evaluations=pd.DataFrame(rows), partition=pd.DataFrame(partition))


def test_a_clients_own_score_weighs_its_degradations_by_their_clips(tmp_path: Path) -> None:
    read = results(tmp_path, [(None, "clean", 30.0), (None, "noisy", 20.0), (None, "web", 10.0)])
    row = own_scores(read, gather(read)).iloc[0]
    # Client 0: (3 * 20 + 30) / 4 = 22.5, client 1: 30. The others': 10, and (20 + 10) / 2.
    assert (row["own_db"], row["worst_db"], row["others_db"]) == (26.25, 22.5, 12.5)
    assert row["num_seeds"] == 1
    assert pd.isna(row["own_std"])


def test_clients_with_networks_of_their_own_are_scored_with_these(tmp_path: Path) -> None:
    scores = [(0, "clean", 28.0), (0, "noisy", 24.0), (1, "clean", 32.0), (1, "noisy", 18.0)]
    read = results(tmp_path, [*scores], runs=2)
    row = own_scores(read, gather(read)).iloc[0]
    # Client 0: (3 * 24 + 28) / 4 = 25, client 1: 32; client 0 lacks none, client 1 the noisy one.
    # The second seed has 1 dB more, so means are 0.5 higher and deviations sqrt(0.5).
    assert (row["own_db"], row["worst_db"], row["others_db"]) == (29.0, 25.5, 18.5)
    assert row["own_std"] == pytest.approx(0.5**0.5)


def test_a_degradation_is_a_column_only_beside_others(tmp_path: Path) -> None:
    read = results(tmp_path, [(None, "clean", 30.0), (None, "noisy", 20.0)])
    scores = by_degradation(read, gather(read))
    assert dict(zip(scores["testset"], scores["psnr_db"], strict=True)) == {
        "held-out: clean": 30,
        "held-out: noisy": 20,
    }
    alone = replace(read, evaluations=read.evaluations.query("degradation == 'clean'"))
    assert by_degradation(alone, gather(alone)).empty
    assert own_scores(alone, gather(alone)).empty


def test_records_without_degradations_have_no_such_table(tmp_path: Path) -> None:
    write_run(tmp_path, "old")
    read = load_results(tmp_path)
    assert read.evaluations["degradation"].isna().all()
    assert by_degradation(read, gather(read)).empty
    assert own_scores(read, gather(read)).empty


def test_the_table_of_personal_methods_has_costs_and_paired_differences(tmp_path: Path) -> None:
    shared = [(None, "clean", 30.0), (None, "noisy", 20.0)]
    own = [(0, "clean", 28.0), (0, "noisy", 24.0), (1, "clean", 32.0), (1, "noisy", 18.0)]
    parts = [
        results(tmp_path / name, scores, runs=2, algorithm=name, num_rounds=1)
        for name, scores in (("fedavg", shared), ("ditto", own))
    ]
    joined = {
        name: pd.concat([getattr(part, name) for part in parts])
        for name in ("runs", "rounds", "clients", "evaluations", "partition")
    }
    rows = bench_personal.table(replace(parts[0], **joined))
    own_db = {name: of["own"].tolist() for name, of in rows.groupby("method")}
    # A shared network: (3 * 20 + 30) / 4 and 30; a client's own: 25 and 32. One more with seed 1.
    assert own_db == {"FedAvg": [26.25, 27.25], "Ditto": [28.5, 29.5]}
    line = next(line for line in bench_personal.lines(rows) if "| Ditto |" in line)
    # Student's t of one degree of freedom is 12.706, times 0.5. Both seeds gain as much.
    assert "| 29.00 ± 6.35 | 25.50 ± 6.35 |" in line
    assert "| +2.25 ± 0.00 | +2.50 ± 0.00 |" in line
