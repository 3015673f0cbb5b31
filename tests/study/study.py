"""The study of docs/design/0024-study.md: a small network on real clips, without a GPU.

    python -m tests.study.study prepare CLIPS WORK    # once: sorts the clips and makes stores
    python -m tests.study.study run WORK              # hours; started again, it resumes
    python -m tests.study.study collect WORK          # results/study, from the finished runs
    python -m tests.study.study page                  # docs/study.md, from results/study

CLIPS is described in tests/study/clips.py. `page` shows no comparison of methods unless the bounds
are at least 0.5 dB apart.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from matplotlib.figure import Figure

from fedvsr.report.content import Report, read
from fedvsr.report.curves import draw_curves, line_styles
from fedvsr.report.figures import save
from fedvsr.report.forest import draw_forest
from fedvsr.report.prose import EFFECTS_NOTE, effects_table
from fedvsr.report.render import grid, legend, number, plain, render
from fedvsr.report.weights import draw_weights
from tests.study.clips import PARTS, lay_out
from tests.study.questions import MIN_GAP_DB, QUESTIONS, Choice, Question, gaps
from tests.study.running import collect, finished, merge, prepare, sweep

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "tune_configs" / "study"
TABLES = ROOT / "results" / "study"
PAGE = ROOT / "docs" / "study.md"
PICTURES = ROOT / "docs" / "images" / "study"
SCALES_NOTE = (
    "Deviation over seeds: the standard deviation of the paired difference, which the power table "
    "in [the design](design/0024-study.md#pilot) asks for."
)
PICTURE_OF = {
    "effects": "Differences, with their intervals",
    "curves": "Scores over rounds, with bands over seeds",
    "weights": "Aggregation weights over rounds, with bands over seeds",
}


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
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "prepare":
        lay_out(arguments.clips.resolve(), arguments.work.resolve() / "videos")
        for part in PARTS:
            prepare(arguments.work.resolve(), part)
    elif arguments.command == "run":
        for name in arguments.sweeps:
            sweep(arguments.work.resolve(), SWEEPS / f"{name}.yaml", name)
    elif arguments.command == "collect":
        collect_all(arguments.work, TABLES)
    else:
        write_page(TABLES, PAGE, PICTURES)


def collect_all(work: Path, tables: Path) -> None:
    """Write the tables of each question whose own sweep has finished runs.

    Runs of another sweep come from its tables, so that its folder of runs may be gone.
    """
    for question in QUESTIONS:
        folder = tables / question.name
        if runs := finished((work / "results" / "sweeps" / question.name / "runs").glob("*")):
            collect(runs, folder)
        for name, choice in question.sweeps.items():
            others = tables / name
            if folder != others and folder.exists() and others.exists():
                merge([others], list(_chosen(others, choice)), folder)


def write_page(tables: Path, target: Path, pictures: Path) -> None:
    """Write the page and its pictures."""
    parts = list(read_questions(tables))
    text = page(parts)
    pictures.mkdir(parents=True, exist_ok=True)
    for question, report in parts:
        for name, figure in figures(question, report).items():
            save(figure, pictures / f"{name}.png")
    target.write_text(text, encoding="utf-8")
    print(target)


def read_questions(tables: Path) -> Iterator[tuple[Question, Report]]:
    """The questions whose runs are in `tables`."""
    for question in QUESTIONS:
        if (tables / question.name).exists():
            yield question, read(tables / question.name)


def page(parts: Sequence[tuple[Question, Report]]) -> str:
    """The text of docs/study.md: that of study.md in this folder, then the tables.

    Raises:
        SystemExit: the bounds are not far enough apart.
    """
    text = [(Path(__file__).parent / "study.md").read_text(encoding="utf-8").strip()]
    for question, report in parts:
        text += section(question, report)
    return "\n\n".join(text) + "\n"


def section(question: Question, report: Report) -> Iterator[str]:
    """The Markdown of a question, in paragraphs."""
    gathered = report.gathered
    yield f"## {question.title}"
    gap = gaps(gathered) if question.name == "methods" else None
    if gap is not None:
        yield require_gap(gap)
    for name in figures(question, report):
        yield f"![{PICTURE_OF[name.partition('-')[0]]}](images/study/{name}.png)"
    if gap is not None:
        yield effects_table(gap, "md").strip()
    tested = question.compare(gathered)
    if tested.empty:
        yield "No comparison has two seeds."
    else:
        yield effects_table(tested, "md").strip()
        yield EFFECTS_NOTE
        whole = question.whole
        measured = whole.measure(gathered) if whole else {}
        name = whole.name if whole else ""
        yield render(plain(list(scales(tested, measured, name)), "md"), "md").strip()
        yield SCALES_NOTE
        if whole:
            of_each = ", ".join(f"{number(db, 2)} dB ({label})" for label, db in measured.items())
            yield f"The {whole.name}: {whole.meaning}: {of_each}."
    yield render(grid(report.main, "md"), "md").strip()
    if not report.ablation.empty:
        yield render(grid(report.ablation, "md"), "md").strip()
    yield legend(report.main)
    yield effort(report.results.runs)


def figures(question: Question, report: Report) -> dict[str, Figure]:
    """The pictures of a question, by name."""
    model = str(report.gathered.runs["model"].iloc[0])
    styles = line_styles(report.gathered)
    tested = question.compare(report.gathered)
    drawn = {f"curves-{question.name}": draw_curves(report.points, model, styles)}
    if not tested.empty:
        drawn = {f"effects-{question.name}": draw_forest(tested, model)} | drawn
    if not report.weights.empty:
        drawn[f"weights-{question.name}"] = draw_weights(report.weights, model, styles)
    return drawn


def scales(tested: pd.DataFrame, whole: Mapping[str, float], name: str) -> Iterator[dict[str, str]]:
    """What differences are to be compared with: their own noise, and what they are a share of.

    Args:
        tested: a table of effects.
        whole: what they are a share of (dB), by heterogeneity.
        name: its name.
    """
    for row in tested.to_dict("records"):
        texts = {
            "difference": f"{row['method']} minus {row['reference']}",
            "heterogeneity": row["heterogeneity"],
            "deviation over seeds": f"{number(row['std'], 3)} dB",
        }
        if whole:
            share = 100 * row["mean"] / whole[row["heterogeneity"]]
            texts[f"share of the {name}"] = f"{number(share, 0, signed=True)} %"
        yield texts


def require_gap(gap: pd.DataFrame) -> str:
    """A sentence on the bounds; if they are too close, this program ends with it."""
    each = [f"{row['mean']:.2f} dB ({row['heterogeneity']})" for row in gap.to_dict("records")]
    sentence = f"Centralized minus local training: {', '.join(each) or 'not run by two seeds'}."
    if gap.empty or gap["mean"].min() < MIN_GAP_DB:
        sys.exit(f"{sentence} It must be {MIN_GAP_DB} dB; change the design, and compare nothing.")
    return sentence


def effort(runs: pd.DataFrame) -> str:
    """The time that the runs took, from their tables, and the software."""
    seconds = (runs["updated_at"] - runs["started_at"]).dt.total_seconds()
    versions = json.loads(runs["versions"].iloc[0])
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ray"))
    return f"{len(runs)} runs, {seconds.sum() / 3600:.1f} hours of one core; {packages}."


def _chosen(tables: Path, choice: Choice) -> Iterator[str]:
    """The ids of the runs that a question compares."""
    table = pq.read_table(tables / "runs.parquet", columns=["run_id", "algorithm", "config"])
    for run in table.to_pylist():
        partition = json.loads(run["config"])["data"]["partition"]
        is_method = not choice.algorithms or run["algorithm"] in choice.algorithms
        if is_method and choice.partition in ("", partition):
            yield run["run_id"]


if __name__ == "__main__":
    main()
