"""A run's curves, as `parts.js` draws them: scores by round, the clients' loss, and seconds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fedvsr.dashboard.values import finite
from fedvsr.means import by_test_set
from fedvsr.metrics import BICUBIC, METRICS
from fedvsr.runs.pace import round_s

# Colours of `report.curves`, which colour-blind readers can tell apart.
_BLUE, _ORANGE, _GREEN = "#0072B2", "#D55E00", "#009E73"
_OTHERS = {
    "loss": {"name": "Loss", "label": "Loss", "decimals": 4},
    "seconds": {"name": "Seconds", "label": "Seconds", "decimals": 1},
}

Json = dict[str, Any]


def charts(rounds: Sequence[Json], walls_s: dict[int, float], evaluations: pa.Table) -> Json:
    """The panels of a run and the metrics that they show.

    Args:
        rounds: rows of `rounds` in their order.
        walls_s: seconds by round, see `walls`.
        evaluations: the table of scores.
    """
    scored = list(_scores(evaluations))
    trained = [row for row in rounds if row["round_idx"]]
    panels = [*scored]
    if trained:
        indices = [row["round_idx"] for row in trained]
        losses = [_line("loss", _BLUE, [finite(row["loss"]) for row in trained])]
        network = [finite(row["vsr_loss"]) for row in trained]
        if network != losses[0]["mean"] and any(value is not None for value in network):
            losses.append(_line("network's own loss", _ORANGE, network, dashes=[5, 2]))
        panels.append(_panel("Clients' loss, mean", "loss", indices, losses))
        seconds = [
            _line("whole round", _BLUE, [walls_s.get(index) for index in indices]),
            _line("scoring", _GREEN, [finite(row["evaluate_s"]) for row in trained], [5, 2]),
        ]
        panels.append(_panel("Seconds of a round", "seconds", indices, seconds))
    shown = {panel["metric"] for panel in panels}
    metrics = {
        name: {"name": m.label, "label": m.heading, "decimals": m.decimals}
        for name, m in METRICS.items()
    }
    return {
        "panels": panels,
        "metrics": {name: m for name, m in (metrics | _OTHERS).items() if name in shown},
    }


def walls(rounds: Sequence[Json], clients: pa.Table) -> dict[int, float]:
    """Seconds of each round that trained, by its index, as `fedvsr watch` shows them."""
    grouped = clients.group_by("round_idx").aggregate([("started_s", "min")])
    first = dict(
        zip(grouped["round_idx"].to_pylist(), grouped["started_s_min"].to_pylist(), strict=True)
    )
    return {
        row["round_idx"]: round_s(row["gap_s"], row["train_s"], first.get(row["round_idx"]) or 0.0)
        for row in rounds
        if row["round_idx"] and row["train_s"] is not None
    }


def _scores(evaluations: pa.Table) -> list[Json]:
    """A panel per metric and test set: means over the clips of each round."""
    panels = list[Json]()
    for metric in METRICS:
        for test_set, rows in by_test_set(evaluations):
            means = rows.group_by("round_idx").aggregate(
                [(metric, "mean"), (BICUBIC + metric, "mean")]
            )
            means = means.sort_by("round_idx").filter(means["round_idx"].is_valid())
            values = [finite(value) for value in means[f"{metric}_mean"].to_pylist()]
            if not any(value is not None for value in values):
                continue
            bicubic = [
                value
                for value in map(finite, means[f"{BICUBIC}{metric}_mean"].to_pylist())
                if value is not None
            ]
            line = _line("network", _BLUE, values, ours=True)
            panel = _panel(test_set, metric, means["round_idx"].to_pylist(), [line])
            baseline = sum(bicubic) / len(bicubic) if bicubic else None
            panels.append({**panel, "always": False, "bicubic": baseline})
    return panels


def _panel(title: str, metric: str, rounds: list[int], lines: list[Json]) -> Json:
    return {
        "model": "",
        "title": title,
        "metric": metric,
        "rounds": rounds,
        "lines": lines,
        "bicubic": None,
        "always": True,
    }


def _line(
    name: str,
    colour: str,
    values: Sequence[float | None],
    dashes: Sequence[float] = (),
    ours: bool = False,
) -> Json:
    rounded = [None if value is None else round(value, 6) for value in values]
    return {
        "method": name,
        "state": "",
        "ours": ours,
        "seeds": 1,
        "colour": colour,
        "dashes": list(dashes),
        "mean": rounded,
        "low": None,
        "high": None,
    }
