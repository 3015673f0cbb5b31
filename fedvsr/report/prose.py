"""The text and tables of a report, in sections, as its Markdown and its page show them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from fedvsr.metrics import METRICS
from fedvsr.report import papers, tables
from fedvsr.report.content import Report
from fedvsr.report.effects import METRIC
from fedvsr.report.render import MISSING, Markup, grid, legend, number, plain, render

_UNKNOWN = "not recorded"
EFFECTS_NOTE = (
    "Differences of PSNR in the last round, paired over seeds: the 95 % t interval over seeds, the "
    "bootstrap interval over seeds and clips, and the p-value of the paired t test, adjusted by "
    "Holm's method for all rows. Equivalent: two one-sided t tests, adjusted likewise, place the "
    "difference within the bound. Undecided: neither test is passed."
)


@dataclass(frozen=True)
class Section:
    """A heading with sentences, a table and a note below it."""

    title: str
    lines: tuple[str, ...] = ()
    """Sentences, plain text."""
    table: str = ""
    """Source text in the requested markup; empty without a table."""
    after: str = ""
    """Note below the table."""


def sections(report: Report, markup: Markup) -> list[Section]:
    """The sections of a report, without those for which it has no results."""
    summary = tables.sentences(report.main, report.paper)
    parts = [
        *_scores("Scores", report, report.main, markup),
        *([Section("Summary", tuple(summary))] if summary else []),
        *_scores("Ablation", report, report.ablation, markup),
        *_scores("By degradation", report, report.degradations, markup),
    ]
    if not report.own.empty:
        rows = [_own(row) for row in report.own.to_dict("records")]
        after = (
            "RGB PSNR in dB of each client's network on the test clips: under the client's own "
            "degradation (mean over clients, and the client with the lowest), and under those of "
            "which it has no clip. Where clients share a network, it is that network's."
        )
        parts.append(Section("Clients' own degradation", (), _table(rows, markup), after))
    if not report.differences.empty:
        rows = [_difference(row) for row in report.differences.to_dict("records")]
        after = (
            "Mean over the seeds and clips that both methods have, with 95 % intervals of "
            "Student's t. Over seeds: from one mean over clips per seed; over clips: from one mean "
            "over seeds per clip; their number is in brackets. The intervals are not adjusted for "
            "the number of comparisons."
        )
        parts.append(Section("Paired differences", (), _table(rows, markup), after))
    if not report.effects.empty:
        parts.append(Section("Effects", (), effects_table(report.effects, markup), EFFECTS_NOTE))
    if not report.overhead.empty:
        rows = _costs(report.overhead)
        after = (
            "Medians over the recorded runs; in brackets, relative to FedAvg on the same device. "
            "Bytes are per client and round. Times include the effect of anything else that the "
            "machine ran."
        )
        if report.overhead["paper_step_ratio"].notna().any():
            after += " In square brackets: the paper's, on its own machine."
        parts.append(Section("Cost", (), _table(rows, markup), after))
    if not report.faults.empty:
        rows = [_fault(row) for row in report.faults.to_dict("records")]
        parts.append(Section("Faults", (), _table(rows, markup)))
    rows = [_run(row) for row in report.gathered.runs.to_dict("records")]
    parts.append(Section("Runs", report.notes, _table(rows, markup)))
    return parts


def _scores(title: str, report: Report, cells: pd.DataFrame, markup: Markup) -> list[Section]:
    """The section of a table of scores; none for an empty table."""
    if cells.empty:
        return []
    after = legend(cells) + _paper_note(report, cells)
    return [Section(title, (), render(grid(cells, markup), markup), after)]


def markdown(report: Report, pictures: Sequence[str]) -> str:
    """The report as Markdown, with `pictures`, the names of files in its folder."""
    parts = ["# Report", ""]
    for section in sections(report, "md"):
        parts += [f"## {section.title}", ""]
        if section.lines:
            parts += [*(f"- {line}" for line in section.lines), ""]
        parts += [part for part in (section.table, section.after) for part in (part, "") if part]
        parts.append("")
    if pictures:
        parts += ["## Figures", ""]
        for name in pictures:
            parts += [f"![{name.removesuffix('.png')}]({name})", ""]
    return "\n".join(parts).replace("\n\n\n", "\n\n").rstrip() + "\n"


def _paper_note(report: Report, cells: pd.DataFrame) -> str:
    if cells["paper"].isna().all():
        return ""
    compared = cells[cells["paper"].notna()]["metric"].unique()
    text = f"The paper's values: {papers.source(report.paper)}."
    return " ".join(["", text, *papers.caveats(report.paper, compared)])


def _table(rows: list[dict[str, str]], markup: Markup) -> str:
    return render(plain(rows, markup), markup)


def _difference(row: Mapping[Any, Any]) -> dict[str, str]:
    decimals = METRICS[row["metric"]].decimals + 1
    return {
        "difference": f"{row['method']} minus {row['reference']}",
        "network": row["model"],
        "heterogeneity": row["heterogeneity"],
        "test set": row["testset"],
        "metric": METRICS[row["metric"]].label,
        "mean": number(row["difference"], decimals, signed=True) + METRICS[row["metric"]].suffix,
        "over seeds": _interval(row, "seeds", decimals),
        "over clips": _interval(row, "clips", decimals),
    }


def effects_table(effects: pd.DataFrame, markup: Markup) -> str:
    """The source text of a table of `fedvsr.report.effects`."""
    return _table([_effect(row) for row in effects.to_dict("records")], markup)


def _effect(row: Mapping[Any, Any]) -> dict[str, str]:
    suffix = METRICS[METRIC].suffix
    return {
        "difference": f"{row['method']} minus {row['reference']}",
        "network": row["model"],
        "heterogeneity": row["heterogeneity"],
        "test set": row["testset"],
        "mean": number(row["mean"], 3, signed=True) + suffix,
        f"verdict (±{row['bound']:g}{suffix})": row["verdict"],
        "t interval": _ends(row, "", 3),
        "bootstrap": _ends(row, "boot_", 3),
        "p (Holm)": "< 0.001" if row["p_holm"] < 0.001 else f"{row['p_holm']:.3f}",
        "seeds": str(row["num_seeds"]),
    }


def _own(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "network": row["model"],
        "method": row["method"],
        "heterogeneity": row["heterogeneity"],
        "test set": row["testset"],
        "seeds": str(row["num_seeds"]),
        "own": _with_deviation(row, "own"),
        "own, worst client": _with_deviation(row, "worst"),
        "others'": _with_deviation(row, "others"),
    }


def _with_deviation(row: Mapping[Any, Any], name: str) -> str:
    mean, std = row[f"{name}_db"], row[f"{name}_std"]
    if pd.isna(mean):
        return MISSING
    return number(mean, 2) + ("" if pd.isna(std) else f" ± {std:.2f}")


def _interval(row: Mapping[Any, Any], what: str, decimals: int) -> str:
    count = row[f"num_{what}"]
    if pd.isna(row[f"{what}_low"]):
        return f"{count} only"
    return f"{_ends(row, f'{what}_', decimals)} ({count})"


def _ends(row: Mapping[Any, Any], prefix: str, decimals: int) -> str:
    low, high = row[f"{prefix}low"], row[f"{prefix}high"]
    return f"{number(low, decimals, signed=True)} to {number(high, decimals, signed=True)}"


def _costs(costs: pd.DataFrame) -> list[dict[str, str]]:
    """The rows of the table of costs, without those of energy and GPUs that nobody measured."""
    shown = {
        "a step": ("step_s", "step", duration),
        "energy a step": ("energy_j", "energy", _joules),
        "aggregation": ("aggregate_s", "aggregate", duration),
        "its energy": ("aggregate_j", "aggregate_energy", _joules),
        "GPU memory": ("gpu_memory_bytes", "gpu_memory", _gpu_memory),
        "GPU use": ("gpu_utilisation", "gpu_utilisation", _percent),
        "down": ("download_bytes", "download", _mib),
        "up": ("upload_bytes", "upload", _mib),
    }
    always = ("step_s", "aggregate_s", "download_bytes", "upload_bytes")
    rows = [
        {
            "network": row["model"],
            "method": row["method"],
            "device": row["device"],
            "runs": str(row["num_runs"]),
        }
        for row in costs.to_dict("records")
    ]
    for heading, (column, name, text) in shown.items():
        paper = costs.get(f"paper_{name}_ratio", pd.Series(index=costs.index, dtype=float))
        if column in always or costs[column].notna().any() or paper.notna().any():
            values = zip(costs[column], costs[f"{name}_ratio"], paper, strict=True)
            for row, (value, ratio, of_paper) in zip(rows, values, strict=True):
                row[heading] = _with_ratios(text(value), ratio, of_paper)
    return rows


def _with_ratios(value: str, ratio: float | None, of_paper: float | None) -> str:
    text = value if ratio is None or pd.isna(ratio) else f"{value} ({ratio:.2f}x)"
    return text if of_paper is None or pd.isna(of_paper) else f"{text} [{of_paper:.2f}x]"


def _joules(energy_j: float) -> str:
    return MISSING if pd.isna(energy_j) else f"{_three(energy_j)} J"


def _gpu_memory(count: float) -> str:
    return MISSING if pd.isna(count) else _mib(count)


def _percent(share: float) -> str:
    return MISSING if pd.isna(share) else f"{share:.0%}"


def duration(seconds: float) -> str:
    """Seconds with three digits, in ms, s, min or h."""
    if math.isnan(seconds):
        return _UNKNOWN
    for factor, unit in ((1e-3, "ms"), (1, "s"), (60, "min")):
        # The next unit is used from 1000 ms, 100 s and 100 min.
        if seconds < factor * (999.5 if unit == "ms" else 99.95):
            return f"{_three(seconds / factor)} {unit}"
    return f"{_three(seconds / 3600)} h"


def _mib(count: float) -> str:
    if math.isnan(count):
        return _UNKNOWN
    mib = count / 2**20
    return f"{_three(mib)} MiB" if mib < 999.5 else f"{_three(mib / 1024)} GiB"


def _three(value: float) -> str:
    """A number of three digits or more, without an exponent."""
    value = float(f"{value:.3g}")
    decimals = max(0, 2 - math.floor(math.log10(value))) if value > 0 else 0
    return f"{value:,.{min(decimals, 6)}f}"


def _fault(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "run": row["run_id"],
        "kind": str(row["kind"]),
        "count": str(row["count"]),
        "then": "given up" if row["final"] else "retried",
        "lost": f"{row['lost_s']:.1f} s",
        "last message": str(row["message"] or ""),
    }


def _run(row: Mapping[Any, Any]) -> dict[str, str]:
    return {
        "run": row["run_id"],
        "network": row["model"],
        "method": row["method"],
        "heterogeneity": row["heterogeneity"],
        "seed": str(row["seed"]),
        "status": row["status"],
        "evaluated": f"round {row['last_round']} of {row['num_rounds']}",
    }
