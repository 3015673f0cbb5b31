"""What FedVSR's weights do, by the small study's tables: figures of docs/explanation/method.md.

    python -m tests.study.weights

Runs are of three networks on the same clients, so it shows whether a client's loss follows from its
content or from the network. Weights are computed from each round's recorded losses, as they are and
mixed with uniform ones, in all federated runs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd

from fedvsr.hellinger import mix_by_hellinger
from fedvsr.records import load_results

TABLES = Path(__file__).parents[2] / "results" / "study-small"
# The published threshold of the mixing.
THRESHOLD = 0.05
_NOT_FEDERATED = ("centralized", "local")


@dataclass(frozen=True)
class Figures:
    """The figures of the page."""

    correlations: dict[str, tuple[float, float, int]]
    """Correlation of two networks' log losses, for all methods and for FedAvg alone: the lowest and
    the highest of any pair of networks, and the number of losses."""
    deviations: pd.DataFrame
    """Means over rounds of the largest `|K w - 1|` of a round's K clients, which
    `rounds.weights_deviation` records: by the exponent of the weights (`constant`: 1; `linear`:
    1 - t/T), `pure` and `mixed`."""
    num_rounds: int
    """Rounds that each deviation is over."""


def figures(folder: Path = TABLES) -> Figures:
    """Compute the figures from the tables of a folder."""
    results = load_results(folder)
    labels = results.runs[["run_id", "model", "algorithm", "num_rounds"]].assign(
        partition=[json.loads(config)["data"]["partition"] for config in results.runs["config"]]
    )
    clients = results.clients.merge(labels, on="run_id")
    clients = clients[~clients["algorithm"].isin(_NOT_FEDERATED)]
    losses = clients.assign(log_loss=np.log(clients["vsr_loss"])).pivot_table(
        index=["algorithm", "partition", "seed", "round_idx", "client_id"],
        columns="model",
        values="log_loss",
    )
    # The ablation was run with one of the networks.
    losses = losses.dropna()
    parts = {"all methods": losses, "FedAvg": losses.loc[["fedavg"]]}
    rows = [row for _, own in clients.groupby(["run_id", "round_idx"]) for row in _deviations(own)]
    deviations = pd.DataFrame(rows).groupby("exponent")
    return Figures(
        {name: _correlation(part) for name, part in parts.items()},
        deviations[["pure", "mixed"]].mean(),
        int(deviations.size().iloc[0]),
    )


def _correlation(losses: pd.DataFrame) -> tuple[float, float, int]:
    matrix = losses.corr()
    pairs = [float(matrix.loc[pair]) for pair in combinations(losses.columns, 2)]
    return min(pairs), max(pairs), len(losses)


def _deviations(cohort: pd.DataFrame) -> list[dict[str, object]]:
    """Deviations of one round's weights, by exponent."""
    first = cohort.iloc[0]
    exponents = {"constant": 1.0, "linear": 1 - first["round_idx"] / first["num_rounds"]}
    rows = list[dict[str, object]]()
    for name, exponent in exponents.items():
        powers = (1 / cohort["loss"]) ** exponent
        pure = (powers / powers.sum()).tolist()
        mixed = mix_by_hellinger(pure, THRESHOLD)
        rows.append({"exponent": name, "pure": _from_uniform(pure), "mixed": _from_uniform(mixed)})
    return rows


def _from_uniform(weights: Sequence[float]) -> float:
    """The largest `|K w - 1|` of K weights."""
    return max(abs(len(weights) * weight - 1) for weight in weights)


def main() -> None:
    """Print the figures."""
    found = figures()
    print("correlation of log losses across networks, lowest and highest of three pairs:")
    for name, (low, high, count) in found.correlations.items():
        print(f"  {name}: {low:.3f} to {high:.3f} ({count} losses)")
    print(f"mean largest |K w - 1| over {found.num_rounds} rounds, by the exponent of the weights:")
    for exponent, row in found.deviations.iterrows():
        print(f"  {exponent}: pure {row['pure']:.1%}, mixed {row['mixed']:.2%}")


if __name__ == "__main__":
    main()
