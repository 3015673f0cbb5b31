"""The small study: small networks on real clips, without a GPU.

    python -m tests.study.small run CLIPS WORK [--seeds 1 2 3]
    python -m tests.study.small page

`run` trains in the folder WORK, and resumes there if it was stopped. It ends by writing the tables
in results/study-small, which keep the runs of other seeds. CLIPS holds videos and a `manifest.json`
with the `id`, `file` and `category` of each. `page` writes docs/study-small.md and its pictures
from those tables.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from fedvsr.records import load_results
from fedvsr.report.content import Report, read
from fedvsr.report.curves import draw_curves, line_styles
from fedvsr.report.figures import save
from fedvsr.report.prose import markdown
from tests.study.running import collect, fedvsr, prepare, sweep

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "tune_configs" / "study_small"
TABLES = ROOT / "results" / "study-small"
PAGE = ROOT / "docs" / "study-small.md"
PICTURES = ROOT / "docs" / "images" / "study-small"
NETWORKS = ("vrt", "rvrt", "iart")
TEST = (
    "davis_cows",
    "davis_soapbox",
    "sports2d_walk",
    "vid4_calendar",
    "vid4_walk",
    "vipseg_market_a",
)


def main() -> None:
    """Parse the arguments and run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("clips", type=Path)
    running.add_argument("work", type=Path)
    running.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    commands.add_parser("page")
    arguments = parser.parse_args()
    if arguments.command == "run":
        run(arguments.clips.resolve(), arguments.work.resolve(), arguments.seeds)
    else:
        write_page()


def run(clips: Path, work: Path, seeds: Sequence[int]) -> None:
    """Do every step up to the tables, except for those that are done."""
    lay_out(clips, work / "videos")
    for name in ("public", "clients", "test"):
        prepare(work, name)
    sweep(work, SWEEPS / "pretrain.yaml", "pretrain")
    sweeps = work / "results" / "sweeps"
    trained = load_results(sweeps / "pretrain").runs.set_index("model")["run_id"]
    for model in NETWORKS:
        weights = work / "weights" / f"{model}.safetensors"
        if not weights.exists():
            weights.parent.mkdir(exist_ok=True)
            folder = str(sweeps / "pretrain" / "runs" / trained[model])
            fedvsr(work, "export", folder, "--to", "safetensors", "--out", str(weights))
    for seed in seeds:
        for name in ("methods", "ablation"):
            sweep(work, SWEEPS / f"{name}.yaml", f"{name}-{seed}", "--set", f"seed={seed}")
    collect_all(sweeps)


def lay_out(source: Path, videos: Path) -> None:
    """Sort the clips into folders of links, one per label, for `data prepare folder`.

    `test` has the six test clips. Of the others, in the order of label and name, every third is in
    `public`, on which networks are pretrained; the rest is in `clients`.
    """
    clips = json.loads((source / "manifest.json").read_text())["clips"]
    clips.sort(key=lambda clip: (clip["category"], clip["id"]))
    others = [clip for clip in clips if clip["id"] not in TEST]
    parts = {
        "test": [clip for clip in clips if clip["id"] in TEST],
        "public": others[::3],
        "clients": [clip for i, clip in enumerate(others) if i % 3],
    }
    for name, part in parts.items():
        for clip in part:
            link = videos / name / clip["category"] / clip["file"]
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(source / clip["file"])


def collect_all(sweeps: Path) -> None:
    """Write the tables of results/study-small, and those of the pretraining in its `pretrain`."""
    compared = [p for name in ("methods", "ablation") for p in sweeps.glob(f"{name}-*/runs/*")]
    collect(sorted(compared), TABLES)
    collect(sorted(sweeps.glob("pretrain/runs/*")), TABLES / "pretrain")


def write_page() -> None:
    """Write docs/study-small.md and its pictures."""
    report = read(TABLES)
    PICTURES.mkdir(parents=True, exist_ok=True)
    styles = line_styles(report.gathered)
    for model in report.points["model"].unique():
        save(draw_curves(report.points, model, styles), PICTURES / picture(model))
    PAGE.write_text(page(report), encoding="utf-8")
    print(PAGE)


def page(report: Report) -> str:
    """The text of docs/study-small.md: that of small.md in this folder, then the report."""
    introduction = (Path(__file__).parent / "small.md").read_text(encoding="utf-8")
    models = report.points["model"].unique()
    pictures = [f"![{model}](images/study-small/{picture(model)})" for model in models]
    effort_line = effort(report.results.runs, load_results(TABLES / "pretrain").runs)
    tables = markdown(report, []).removeprefix("# Report\n")
    return "\n\n".join([introduction.strip(), effort_line, *pictures, tables.strip()]) + "\n"


def picture(model: str) -> str:
    return f"curves-{model.split()[0].lower()}.png"


def effort(runs: pd.DataFrame, pretraining: pd.DataFrame) -> str:
    """The time that the runs took, from their tables."""

    def of(some: pd.DataFrame) -> str:
        hours = (some["updated_at"] - some["started_at"]).dt.total_seconds().sum() / 3600
        return f"{len(some)} runs, {hours:.1f} hours of one core"

    versions = json.loads(runs["versions"].iloc[0])
    packages = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ray"))
    hours = f"Pretraining: {of(pretraining)}. Compared: {of(runs)}."
    return f"**Effort.** {hours} Software: {packages}."


if __name__ == "__main__":
    main()
