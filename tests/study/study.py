"""The study of docs/design/0024-study.md: a small network on real clips, without a GPU.

    python -m tests.study.study prepare CLIPS WORK    # once: sorts the clips and makes stores
    python -m tests.study.study run WORK              # hours; started again, it resumes
    python -m tests.study.study collect WORK          # results/study, from the finished runs
    python -m tests.study.study report OUT            # tables and pictures, from results/study

CLIPS is described in tests/study/clips.py. `report` shows no comparison of methods unless the
bounds are at least 0.5 dB apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq

from fedvsr.report.content import Report, read
from fedvsr.report.curves import draw_curves, line_styles
from fedvsr.report.figures import save
from fedvsr.report.forest import draw_forest
from fedvsr.report.prose import EFFECTS_NOTE, effects_table
from fedvsr.report.render import grid, legend, render
from fedvsr.report.weights import draw_weights
from tests.study.clips import PARTS, lay_out
from tests.study.questions import MIN_GAP_DB, QUESTIONS, Choice, Question, gaps
from tests.study.running import collect, finished, prepare, sweep

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "tune_configs" / "study"
TABLES = ROOT / "results" / "study"


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    preparing = commands.add_parser("prepare")
    preparing.add_argument("clips", type=Path)
    preparing.add_argument("work", type=Path)
    running = commands.add_parser("run")
    running.add_argument("work", type=Path)
    names = [question.name for question in QUESTIONS]
    running.add_argument("--sweeps", nargs="+", choices=names, default=names)
    collecting = commands.add_parser("collect")
    collecting.add_argument("work", type=Path)
    for command in (collecting, reporting := commands.add_parser("report")):
        command.add_argument("--tables", type=Path, default=TABLES)
    reporting.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        lay_out(arguments.clips.resolve(), arguments.work.resolve() / "videos")
        for part in PARTS:
            prepare(arguments.work.resolve(), part)
    elif arguments.command == "run":
        for name in arguments.sweeps:
            sweep(arguments.work.resolve(), SWEEPS / f"{name}.yaml", name)
    elif arguments.command == "collect":
        collect_all(arguments.work, arguments.tables)
    else:
        write_report(arguments.tables, arguments.out)


def collect_all(work: Path, tables: Path) -> None:
    """Write the tables of each question whose own sweep has finished runs."""
    for question in QUESTIONS:
        runs = dict[str, list[Path]]()
        for name, choice in question.sweeps.items():
            of_sweep = finished((work / "results" / "sweeps" / name / "runs").glob("*"))
            runs[name] = [run for run in of_sweep if _is_chosen(run, choice)]
        if runs[question.name]:
            collect(chain.from_iterable(runs.values()), tables / question.name)


def write_report(tables: Path, out: Path) -> None:
    """Write `tables.md`, a CSV file of effects per question, and the pictures."""
    out.mkdir(parents=True, exist_ok=True)
    text = list[str]()
    for question in QUESTIONS:
        if (tables / question.name).exists():
            text += section(question, read(tables / question.name), out)
    (out / "tables.md").write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(out / "tables.md")


def section(question: Question, report: Report, out: Path) -> Iterator[str]:
    """The Markdown of a question, in paragraphs; its files are written to `out`."""
    gathered = report.gathered
    model = str(gathered.runs["model"].iloc[0])
    yield f"## {question.title}"
    if question.name == "methods":
        gap = gaps(gathered)
        yield require_gap(gap)
        yield effects_table(gap, "md").strip()
    yield render(grid(report.main, "md"), "md").strip()
    if not report.ablation.empty:
        yield render(grid(report.ablation, "md"), "md").strip()
    yield legend(report.main)
    tested = question.compare(gathered)
    if tested.empty:
        yield "No comparison has two seeds."
        return
    yield effects_table(tested, "md").strip()
    yield EFFECTS_NOTE
    tested.to_csv(out / f"effects-{question.name}.csv", index=False)
    styles = line_styles(gathered)
    figures = {
        f"effects-{question.name}": draw_forest(tested, model),
        f"curves-{question.name}": draw_curves(report.points, model, styles),
    }
    if not report.weights.empty:
        figures[f"weights-{question.name}"] = draw_weights(report.weights, model, styles)
    for name, figure in figures.items():
        save(figure, out / f"{name}.png")
        yield f"![{name}]({name}.png)"
    yield effort(report.results.runs)


def require_gap(gap: pd.DataFrame) -> str:
    """A sentence on the bounds; if they are too close, this program ends with it."""
    each = [f"{row['mean']:.2f} dB ({row['heterogeneity']})" for row in gap.to_dict("records")]
    sentence = f"Centralized minus local training: {', '.join(each) or 'not run by two seeds'}."
    if gap.empty or gap["mean"].min() < MIN_GAP_DB:
        sys.exit(f"{sentence} It must be {MIN_GAP_DB} dB; change the design, and compare nothing.")
    return sentence


def effort(runs: pd.DataFrame) -> str:
    """The time that the runs took, from their tables."""
    seconds = (runs["updated_at"] - runs["started_at"]).dt.total_seconds()
    return f"{len(runs)} runs, {seconds.sum() / 3600:.1f} hours of one core."


def _is_chosen(run: Path, choice: Choice) -> bool:
    table = pq.read_table(run / "runs.parquet", columns=["algorithm", "config"])
    ((algorithm, config),) = zip(*table.to_pydict().values(), strict=True)
    partition = json.loads(config)["data"]["partition"]
    is_method = not choice.algorithms or algorithm in choice.algorithms
    return is_method and choice.partition in ("", partition)


if __name__ == "__main__":
    main()
