"""The cost of methods relative to FedAvg, from the recorded times and bytes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from fedvsr.records import Results
from fedvsr.report import papers
from fedvsr.report.gather import Gathered, method_order, ordered
from fedvsr.report.papers import Paper

# Each cost's name in the columns of its ratios, and in the paper's table.
_COSTS = {
    "step_s": ("step", "training_latency"),
    "energy_j": ("energy", "training_energy"),
    "aggregate_s": ("aggregate", "aggregation_latency"),
    "aggregate_j": ("aggregate_energy", "aggregation_energy"),
    "gpu_memory_bytes": ("gpu_memory", "gpu_memory"),
    "gpu_utilisation": ("gpu_utilisation", "gpu_utilisation"),
    "download_bytes": ("download", None),
    "upload_bytes": ("upload", None),
}
COLUMNS = [
    *("model", "method", "device", "num_runs"),
    *(
        column
        for cost, (name, of_paper) in _COSTS.items()
        for column in (cost, f"{name}_ratio", *([f"paper_{name}_ratio"] if of_paper else []))
    ),
]


def overhead(results: Results, gathered: Gathered, paper: Paper = papers.DEFAULT) -> pd.DataFrame:
    """What a method costs, each cost with its ratio to FedAvg's, and the paper's ratio.

    Compares runs of the same network, device and executor, over all kinds of heterogeneity.

    Returns:
        A row of `COLUMNS` per network, device and method. `step_s`: training time per step without
        waiting for samples, median over clients and rounds. `aggregate_s`, `aggregate_j`: median
        over rounds. `energy_j` (per step), `gpu_memory_bytes`, `gpu_utilisation`: median over
        clients and rounds; null where none was measured. Bytes: means per client and round. Ratios
        are null without a run of FedAvg, the paper's (`paper_step_ratio`) if it gives none.
    """
    machines = results.runs.set_index("run_id")[["device", "executor"]].agg(", ".join, axis=1)
    runs = gathered.runs.assign(device=gathered.runs["run_id"].map(machines))
    labels = runs[["run_id", "model", "method", "algorithm", "device"]]
    clients = results.clients.merge(labels, on="run_id")
    rounds = results.rounds[results.rounds["round_idx"] > 0].merge(labels, on="run_id")
    clients = clients[clients["num_steps"] > 0]
    waited = clients["input_wait_s"].fillna(0)
    clients = clients.assign(
        step_s=(clients["train_s"] - waited) / clients["num_steps"],
        energy_j=clients["energy_j"] / clients["num_steps"],
    )
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
                for cost, (name, of_paper) in _COSTS.items():
                    row[f"{name}_ratio"] = row[cost] / base[cost] if base.get(cost) else None
                    if of_paper:
                        ratio = papers.overhead(paper, algorithms[row["method"]], of_paper)
                        row[f"paper_{name}_ratio"] = ratio
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
        **{
            name: own_clients[name].astype(float).median()
            for name in ("step_s", "energy_j", "gpu_memory_bytes", "gpu_utilisation")
        },
        **{
            name: own_rounds[name].astype(float).median() for name in ("aggregate_s", "aggregate_j")
        },
        "download_bytes": own_rounds["download_bytes"].sum() / own_rounds["num_sampled"].sum(),
        "upload_bytes": own_rounds["upload_bytes"].sum() / own_rounds["num_sampled"].sum(),
    }
