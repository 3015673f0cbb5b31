"""The cost of methods relative to FedAvg, from the recorded times and bytes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedvsr.records import Results
from fedvsr.report import papers
from fedvsr.report.gather import Gathered, method_order, ordered
from fedvsr.report.papers import Paper

COLUMNS = [
    "model",
    "method",
    "device",
    "num_runs",
    "step_s",
    "step_ratio",
    "aggregate_s",
    "aggregate_ratio",
    "download_bytes",
    "download_ratio",
    "upload_bytes",
    "upload_ratio",
    "paper_step_ratio",
    "paper_aggregate_ratio",
]
_PAPER = {
    "paper_step_ratio": "training_latency",
    "paper_aggregate_ratio": "aggregation_latency",
}


def overhead(results: Results, gathered: Gathered, paper: Paper = papers.DEFAULT) -> pd.DataFrame:
    """Seconds per step and per aggregation, and bytes, each with its ratio to FedAvg's.

    Compares runs of the same network, device and executor, over all kinds of heterogeneity.

    Returns:
        A row of `COLUMNS` per network, device and method. `step_s`: training time per step without
        waiting for samples, median over clients and rounds. `aggregate_s`: median over rounds.
        Bytes: means per client and round. Ratios are null without a run of FedAvg.
        `paper_step_ratio`, `paper_aggregate_ratio`: the paper's training and aggregation latency
        relative to FedAvg's, null if it gives none.
    """
    machines = results.runs.set_index("run_id")[["device", "executor"]].agg(", ".join, axis=1)
    runs = gathered.runs.assign(device=gathered.runs["run_id"].map(machines))
    labels = runs[["run_id", "model", "method", "algorithm", "device"]]
    clients = results.clients.merge(labels, on="run_id")
    rounds = results.rounds[results.rounds["round_idx"] > 0].merge(labels, on="run_id")
    clients = clients[clients["num_steps"] > 0]
    waited = clients["input_wait_s"].fillna(0)
    clients = clients.assign(step_s=(clients["train_s"] - waited) / clients["num_steps"])
    algorithms = dict(zip(runs["method"], runs["algorithm"], strict=True))
    rows = []
    for model in ordered(runs["model"], "model"):
        for device in sorted(runs[runs["model"] == model]["device"].unique()):
            costs = [
                _costs(model, device, method, clients, rounds)
                for method in method_order(runs[(runs["model"] == model)])
            ]
            costs = [row for row in costs if row]
            base = next((row for row in costs if row["method"] == "FedAvg"), {})
            for row in costs:
                for name in ("step_s", "aggregate_s", "download_bytes", "upload_bytes"):
                    ratio = name.rpartition("_")[0] + "_ratio"
                    row[ratio] = row[name] / base[name] if base.get(name) else None
                algorithm = str(algorithms[row["method"]])
                for name, column in _PAPER.items():
                    row[name] = papers.overhead(paper, algorithm, column)
            rows += costs
    return pd.DataFrame(rows, columns=COLUMNS)


def _costs(
    model: str, device: str, method: str, clients: pd.DataFrame, rounds: pd.DataFrame
) -> dict[str, Any]:
    own_clients, own_rounds = (
        table[(table["model"] == model) & (table["device"] == device) & (table["method"] == method)]
        for table in (clients, rounds)
    )
    if own_clients.empty:
        return {}
    return {
        "model": model,
        "method": method,
        "device": device,
        "num_runs": own_clients["run_id"].nunique(),
        "step_s": own_clients["step_s"].median(),
        "aggregate_s": own_rounds["aggregate_s"].median(),
        "download_bytes": own_rounds["download_bytes"].sum() / own_rounds["num_sampled"].sum(),
        "upload_bytes": own_rounds["upload_bytes"].sum() / own_rounds["num_sampled"].sum(),
    }
