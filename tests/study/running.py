"""What the studies share: running commands and sweeps in a folder, and collecting their tables."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
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
    out.mkdir(parents=True, exist_ok=True)
    for name, schema in SCHEMAS.items():
        paths = [path for folder in folders if (path := folder / f"{name}.parquet").exists()]
        table = pa.concat_tables([schema.empty_table(), *(pq.read_table(p) for p in paths)])
        target = out / f"{name}.parquet"
        if target.exists():
            existing = pq.ParquetFile(target).read()
            is_new = pc.is_in(existing["run_id"], pa.array([folder.name for folder in folders]))
            table = pa.concat_tables([existing.filter(pc.invert(is_new)), table])
        with replacing(target) as aside:
            pq.write_table(table.sort_by("run_id"), aside)
    print(f"{out}: the tables of {len(folders)} finished runs")
