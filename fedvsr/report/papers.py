"""The numbers that the FedVSR paper prints, in its two forms: the preprint and the published one.

They differ in the method (`docs/explanation/method.md`), so FedVSR's numbers belong to another
algorithm in each: `fedvsr` in the preprint, `fedvsr_published` in the published form. Those of the
other methods stand beside the same algorithm in both.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, Literal, get_args

import pandas as pd

from fedvsr.report.gather import display

Paper = Literal["preprint", "published"]
PAPERS: tuple[Paper, ...] = get_args(Paper)
DEFAULT: Paper = "preprint"
# Settings in which the paper's own experiments differ, and what its tables 1 and 2 have.
_PROTOCOL: Mapping[str, object] = {
    "data.num_clients": 40,
    "data.clips_per_client": 6,
    "federation.upload_failure_probability": 0,
    "local.epochs": 1,
}


def source(paper: Paper) -> str:
    """The source of a form's values, and the settings that they hold for."""
    numbers = _numbers(paper)
    return f"{numbers['source']} ({numbers['settings']})"


def caveats(paper: Paper, metrics: Collection[str]) -> list[str]:
    """Why the paper's values of some of these metrics cannot be compared, as sentences."""
    return [text for name, text in _numbers(paper)["not_comparable"].items() if name in metrics]


def methods(paper: Paper) -> list[str]:
    """The algorithms of its tables, in their order."""
    return list(_numbers(paper)["values"]["vrt"])


def networks(paper: Paper) -> set[str]:
    """The networks of its tables, as a report names them at the paper's size."""
    return {display(name) for name in _numbers(paper)["values"]}


def stated_margins(paper: Paper, heterogeneity: str, metric: str) -> Mapping[str, float]:
    """The margins that the paper's text states, `all` and `second`; empty if it states none."""
    margins: Mapping[str, float] = (
        _numbers(paper)["stated_margins"].get(heterogeneity, {}).get(metric, {})
    )
    return margins


def overhead(paper: Paper, algorithm: str, column: str) -> float | None:
    """A cost relative to FedAvg, such as 1.1, by column of the paper's overhead table.

    Args:
        paper: the form of the paper.
        algorithm: name of the algorithm.
        column: `training_latency`, `training_energy`, `aggregation_latency`, `aggregation_energy`,
            `gpu_memory` or `gpu_utilisation`.
    """
    table = _numbers(paper)["overhead_percent"]
    if algorithm not in table:
        return None
    percent: float = table[algorithm][table["columns"].index(column)]
    return 1 + percent / 100


def cells(paper: Paper, algorithms: Sequence[str]) -> pd.DataFrame:
    """Values of tables 1 and 2, of finished runs of one seed, as `tables.main_table` has them."""
    numbers = _numbers(paper)
    rows = [
        {
            "model": model,
            "method": display(algorithm),
            "algorithm": algorithm,
            "heterogeneity": heterogeneity,
            "testset": testset,
            "metric": metric,
            "mean": value,
            "state": "",
        }
        for model, by_algorithm in numbers["values"].items()
        for algorithm in algorithms
        for heterogeneity, by_set in by_algorithm[algorithm].items()
        for testset, values in by_set.items()
        for metric, value in zip(numbers["metrics"], values, strict=True)
    ]
    return pd.DataFrame(rows)


def value(
    paper: Paper,
    cell: Mapping[str, str],
    metric: str,
    settings: Mapping[str, Any],
    named: Collection[str] = (),
) -> float | None:
    """The paper's value for a cell of a table; None if it has none.

    Args:
        paper: the form of the paper.
        cell: its `model`, `algorithm`, `heterogeneity` and `testset`.
        metric: the metric.
        settings: the settings of its runs by dotted key; empty if it has no run.
        named: the keys of the settings by which the method is told from others of its algorithm.
    """
    numbers = _numbers(paper)
    if metric not in numbers["metrics"] or not set(named) <= set(_PROTOCOL):
        return None
    num_clients = settings.get("data.num_clients")
    values, free = numbers["values"], {"data.num_clients", "data.clips_per_client"}
    if str(num_clients) in numbers["by_num_clients"]:
        # With more clients, each has fewer of the same clips.
        values = numbers["by_num_clients"][str(num_clients)]
    else:
        free = set()
    if any(settings.get(key) != _PROTOCOL[key] for key in set(named) - free):
        return None
    # `VRT (small)` is not the paper's network, but the paper's VRT is the closest value.
    by_name = {display(name): own for name, own in values.items()}
    own = by_name.get(cell["model"].split(" (")[0], {})
    by_set = own.get(cell["algorithm"], {}).get(cell["heterogeneity"], {})
    # Luma, a crop, or some frames, are not what the paper scores.
    scores = by_set.get(cell["testset"])
    found: float | None = scores[numbers["metrics"].index(metric)] if scores else None
    return found


@cache
def _numbers(paper: Paper) -> dict[str, Any]:
    text = (resources.files("fedvsr.report") / f"{paper}.json").read_text()
    numbers: dict[str, Any] = json.loads(text)
    return numbers
