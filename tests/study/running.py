"""What the studies share: running commands and sweeps in a folder, and collecting their tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from fedvsr.files import replacing
from fedvsr.schemas import SCHEMAS


def fedvsr(folder: Path, *arguments: str) -> None:
    """Run a command of fedvsr in a folder; if it fails, this program ends with its exit status."""
    print("fedvsr", *arguments, flush=True)
    process = subprocess.run([sys.executable, "-m", "fedvsr", *arguments], cwd=folder, check=False)
    if process.returncode:
        sys.exit(process.returncode)


def sweep(work: Path, file: Path, name: str, *options: str) -> None:
    """Run a sweep, or resume it if it was started."""
    is_started = (work / "results" / "sweeps" / name / "sweep.yaml").exists()
    mode = ["--resume"] if is_started else ["--max-concurrent", "2"]
    fedvsr(work, "tune", str(file), "--name", name, *options, *mode)


def prepare(work: Path, part: str) -> None:
    """Make a clip store of the folder videos/PART, unless it exists."""
    if not (work / "stores" / part).exists():
        source, store = f"videos/{part}", f"stores/{part}"
        fedvsr(work, "data", "prepare", "folder", "--source", source, "--out", store)


def finished(runs: Iterable[Path]) -> list[Path]:
    """The folders of finished runs, in order."""
    return [
        folder
        for folder in sorted(runs)
        if (folder / "runs.parquet").exists()
        and pq.read_table(folder / "runs.parquet")["status"].to_pylist() == ["finished"]
    ]


def collect(runs: Iterable[Path], out: Path) -> None:
    """Write each table of the finished runs into one file, keeping other runs in that file."""
    folders = finished(runs)
    merge(folders, [folder.name for folder in folders], out)
    print(f"{out}: the tables of {len(folders)} finished runs")


def merge(folders: Sequence[Path], run_ids: Sequence[str], out: Path) -> None:
    """Write the rows of some runs from tables in `folders` to those in `out`, which keep others."""
    out.mkdir(parents=True, exist_ok=True)
    ids = pa.array(run_ids, pa.string())
    for name, schema in SCHEMAS.items():
        paths = [path for folder in folders if (path := folder / f"{name}.parquet").exists()]
        table = pa.concat_tables([schema.empty_table(), *(pq.read_table(p) for p in paths)])
        table = table.filter(pc.is_in(table["run_id"], ids))
        target = out / f"{name}.parquet"
        if target.exists():
            existing = pq.ParquetFile(target).read()
            kept = existing.filter(pc.invert(pc.is_in(existing["run_id"], ids)))
            table = pa.concat_tables([kept, table])
        with replacing(target) as aside:
            pq.write_table(table.sort_by("run_id"), aside)
