"""Means of recorded scores, each over the clips of one test set."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.metrics import columns

# Clients that are named of each degradation.
_SHOWN = 20
# Tables are filtered by values of their own: pyarrow loads pandas to compare with one of Python.


def last_evaluation(evaluations: pa.Table) -> pa.Table:
    """The rows of the last evaluated round."""
    round_idx = evaluations["round_idx"]
    return evaluations.filter(pc.equal(round_idx, pc.max(round_idx)))


def by_test_set(evaluations: pa.Table) -> list[tuple[str, pa.Table]]:
    """The rows of each test set with its name, in the order in which the sets first occur."""
    return [(str(name), rows) for name, rows in groups(evaluations, "test_set")]


def groups(table: pa.Table, column: str) -> list[tuple[pa.Scalar, pa.Table]]:
    """The distinct values of a column in the order of their first rows, each with its rows."""
    values = table[column]
    return [
        (value, table.filter(pc.equal(values, value) if value.is_valid else pc.is_null(values)))
        for value in values.unique()
    ]


def mean_scores(evaluations: pa.Table) -> dict[str, float]:
    """Means over rows of `evaluations` by column, bicubic's too; without those never scored."""
    means = {name: pc.mean(evaluations[name]).as_py() for name in columns()}
    return {name: value for name, value in means.items() if value is not None}


def headline(evaluations: pa.Table) -> dict[str, str | float]:
    """The columns of a run's row or a round's: the first test set and the means over its clips.

    Args:
        evaluations: rows of one round; empty if it is not evaluated.
    """
    if not evaluations.num_rows:
        return {}
    name, rows = by_test_set(evaluations)[0]
    return {"test_set": name, **mean_scores(rows)}


def degradations_of(partition: pa.Table) -> dict[str, str]:
    """The clients that have clips of each degradation, e.g. `0, 3, 7`, by its name.

    Args:
        partition: the table of that name; in an older record nothing is known.
    """
    dealt = dict[str, str]()
    for degradation, rows in groups(partition, "degradation"):
        clients = sorted(set(rows["client_id"].to_pylist()))
        shown = ", ".join(map(str, clients[:_SHOWN]))
        more = len(clients) - _SHOWN
        if degradation.is_valid:
            dealt[degradation.as_py()] = shown + (f" and {more} more" if more > 0 else "")
    return dict(sorted(dealt.items()))
