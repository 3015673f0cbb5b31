"""The table of personal methods, in Markdown, from the runs of a sweep: `make bench-personal`.

    fedvsr tune tune_configs/personal.yaml --set 'data.train=[DIR]' --max-concurrent 2 --out RUNS
    make bench-personal ARGS=RUNS

Scores are PSNR of a client's network under the client's own degradation. Intervals are Student's,
95 %, over seeds. Differences to FedAvg are paired: runs of a seed have the same clips, degradations
and cohorts.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from fedvsr.records import Results, load_results
from fedvsr.report.degradations import own_by_run
from fedvsr.report.gather import gather, method_order
from fedvsr.report.paired import interval

BASE = "FedAvg"
HEADER = (
    *("network", "method", "seeds", "own, dB", "worst client, dB", "others', dB"),
    *("own minus FedAvg", "worst minus FedAvg", "down, kB", "up, kB", "s"),
)


def table(results: Results) -> pd.DataFrame:
    """What each finished run scored and cost.

    Returns:
        A row per run: `model, method, seed`, the scores of `own_by_run`, `down` and `up` (kB a
        client and round) and `seconds` (training a client and round, without waiting for samples).
    """
    rows = own_by_run(results, gather(results))
    totals = results.rounds.groupby("run_id")[
        ["download_bytes", "upload_bytes", "num_sampled"]
    ].sum()
    kilobytes = totals.div(totals["num_sampled"] * 1000, axis=0)
    clients = results.clients.assign(
        seconds=results.clients["train_s"] - results.clients["input_wait_s"].fillna(0)
    )
    seconds = clients.groupby("run_id")["seconds"].mean()
    return rows.assign(
        down=rows["run_id"].map(kilobytes["download_bytes"]),
        up=rows["run_id"].map(kilobytes["upload_bytes"]),
        seconds=rows["run_id"].map(seconds),
    )


def lines(rows: pd.DataFrame) -> Iterator[str]:
    """The table in Markdown: a line per network and method."""
    yield f"| {' | '.join(HEADER)} |"
    yield "|" + "---|" * len(HEADER)
    for model, own in rows.groupby("model", sort=False):
        base = own[own["method"] == BASE].set_index("seed")
        for method in method_order(own):
            seeds = own[own["method"] == method].set_index("seed")
            cells = [str(model), method, str(len(seeds))]
            cells += [with_interval(seeds[name], "{:.2f}") for name in ("own", "worst", "others")]
            for name in ("own", "worst"):
                differences = (seeds[name] - base[name]).dropna()
                cells.append("" if method == BASE else with_interval(differences, "{:+.2f}"))
            cells += [f"{seeds[name].mean():.1f}" for name in ("down", "up")]
            cells.append(with_interval(seeds["seconds"], "{:.2f}"))
            yield f"| {' | '.join(cells)} |"


def with_interval(values: pd.Series, shape: str) -> str:
    """A mean with half the width of its interval; the mean alone for one value, empty for none."""
    if values.dropna().empty:
        return ""
    low, high = interval(values)
    mean = shape.format(values.mean())
    return mean if low is None or high is None else f"{mean} ± {(high - low) / 2:.2f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "runs", type=Path, nargs="?", default=Path("results"), help="folder of runs"
    )
    options = parser.parse_args()
    print("\n".join(lines(table(load_results(options.runs)))))


if __name__ == "__main__":
    main()
