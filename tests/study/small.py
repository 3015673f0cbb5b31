"""The small study: small networks on real clips, without a GPU.

    python -m tests.study.small run CLIPS WORK [--seeds 1 2 3]
    python -m tests.study.small page

`run` trains in the folder WORK and can be stopped and called again; it ends with the tables in
results/study-small, where those of other seeds stay. CLIPS holds videos and a `manifest.json` that
gives each its `id`, `file` and `category`. `page` writes docs/study-small.md and its pictures from
those tables.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedvsr.files import replacing
from fedvsr.records import SCHEMAS, load_results
from fedvsr.report.content import Report, read
from fedvsr.report.curves import draw_curves, line_styles
from fedvsr.report.figures import save
from fedvsr.report.prose import markdown

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
    """Parse and call."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    running = commands.add_parser("run")
    running.add_argument("clips", type=Path)
    running.add_argument("work", type=Path)
    running.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    commands.add_parser("page")
    given = parser.parse_args()
    if given.command == "run":
        run(given.clips.resolve(), given.work.resolve(), given.seeds)
    else:
        write_page()


def run(clips: Path, work: Path, seeds: Sequence[int]) -> None:
    """Everything up to the tables; what is done already is not done again."""
    lay_out(clips, work / "videos")
    for name in ("public", "clients", "test"):
        if not (work / "stores" / name).exists():
            source, store = f"videos/{name}", f"stores/{name}"
            _fedvsr(work, "data", "prepare", "folder", "--source", source, "--out", store)
    _sweep(work, "pretrain", "pretrain")
    sweeps = work / "results" / "sweeps"
    trained = load_results(sweeps / "pretrain").runs.set_index("model")["run_id"]
    for model in NETWORKS:
        weights = work / "weights" / f"{model}.safetensors"
        if not weights.exists():
            weights.parent.mkdir(exist_ok=True)
            folder = str(sweeps / "pretrain" / "runs" / trained[model])
            _fedvsr(work, "export", folder, "--to", "safetensors", "--out", str(weights))
    for seed in seeds:
        for name in ("methods", "ablation"):
            _sweep(work, name, f"{name}-{seed}", "--set", f"seed={seed}")
    collect_all(sweeps)


def lay_out(source: Path, videos: Path) -> None:
    """Sort the clips into folders of links, one a label, as `data prepare folder` takes them.

    `test`: the six that are scored. Of the others, in order of label and name, every third is
    `public`, on which networks train first; the rest belong to `clients`.
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
    """The tables in results/study-small, and of the runs before them in its folder `pretrain`."""
    compared = [p for name in ("methods", "ablation") for p in sweeps.glob(f"{name}-*/runs/*")]
    collect(sorted(compared), TABLES)
    collect(sorted(sweeps.glob("pretrain/runs/*")), TABLES / "pretrain")


def collect(runs: Iterable[Path], out: Path) -> None:
    """Write the tables of those runs that have finished as one each, beside what is there."""
    folders = [
        folder
        for folder in runs
        if pq.read_table(folder / "runs.parquet")["status"].to_pylist() == ["finished"]
    ]
    out.mkdir(parents=True, exist_ok=True)
    for name, schema in SCHEMAS.items():
        paths = [path for folder in folders if (path := folder / f"{name}.parquet").exists()]
        found = pa.concat_tables([schema.empty_table(), *(pq.read_table(p) for p in paths)])
        target = out / f"{name}.parquet"
        if target.exists():
            kept = pq.ParquetFile(target).read()
            again = pc.is_in(kept["run_id"], pa.array([folder.name for folder in folders]))
            found = pa.concat_tables([kept.filter(pc.invert(again)), found])
        with replacing(target) as aside:
            pq.write_table(found.sort_by("run_id"), aside)
    print(f"{out}: the tables of {len(folders)} finished runs")


def write_page() -> None:
    """docs/study-small.md and its pictures."""
    report = read(TABLES)
    PICTURES.mkdir(parents=True, exist_ok=True)
    styles = line_styles(report.gathered)
    for model in report.points["model"].unique():
        save(draw_curves(report.points, model, styles), PICTURES / picture(model))
    PAGE.write_text(page(report), encoding="utf-8")
    print(PAGE)


def page(report: Report) -> str:
    """The text of docs/study-small.md: what small.md beside this file says, then the report."""
    said = (Path(__file__).parent / "small.md").read_text(encoding="utf-8")
    models = report.points["model"].unique()
    pictures = [f"![{model}](images/study-small/{picture(model)})" for model in models]
    took = effort(report.results.runs, load_results(TABLES / "pretrain").runs)
    tables = markdown(report, []).removeprefix("# Report\n")
    return "\n\n".join([said.strip(), took, *pictures, tables.strip()]) + "\n"


def picture(model: str) -> str:
    return f"curves-{model.split()[0].lower()}.png"


def effort(runs: pd.DataFrame, pretraining: pd.DataFrame) -> str:
    """What the runs took, from their tables."""

    def of(some: pd.DataFrame) -> str:
        took = (some["updated_at"] - some["started_at"]).dt.total_seconds().sum() / 3600
        return f"{len(some)} runs, {took:.1f} hours of one core"

    versions = json.loads(runs["versions"].iloc[0])
    named = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch", "ray"))
    return f"**Effort.** Before: {of(pretraining)}. Compared: {of(runs)}. With {named}."


def _sweep(work: Path, file: str, name: str, *options: str) -> None:
    begun = (work / "results" / "sweeps" / name / "sweep.yaml").exists()
    how = ["--resume"] if begun else ["--max-concurrent", "2"]
    _fedvsr(work, "tune", str(SWEEPS / f"{file}.yaml"), "--name", name, *options, *how)


def _fedvsr(folder: Path, *arguments: str) -> None:
    print("fedvsr", *arguments, flush=True)
    done = subprocess.run([sys.executable, "-m", "fedvsr", *arguments], cwd=folder, check=False)
    if done.returncode:
        sys.exit(done.returncode)


if __name__ == "__main__":
    main()
