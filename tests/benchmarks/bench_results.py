"""What it costs to read many runs: `make bench-results`, or this file with arguments.

One small run is written by the run's own writer and copied under other names. The table has the
processor time of a reading, the files that it opened and the bytes that it read.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from fedvsr import load_results
from fedvsr.checked import write_parquet
from fedvsr.recording import RunRecords
from fedvsr.records import read_table
from fedvsr.schemas import SCHEMAS
from tests.benchmarks.bench_records import IDENTITY, add_round

NUM_ROUNDS, NUM_CLIENTS = 20, 4


class Opened:
    """Counts the files of runs that this process opens in Python or Arrow reads, by their bytes."""

    def __init__(self) -> None:
        self.num_files = 0
        sys.addaudithook(self._saw)

    def _saw(self, event: str, args: tuple[object, ...]) -> None:
        if event == "open" and str(args[0]).endswith((".parquet", ".jsonl")):
            self.num_files += Path(str(args[0])).exists()


def read_bytes() -> int:
    """Bytes that this process has read so far."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


def write_runs(folder: Path, count: int) -> list[str]:
    """Write one run and its copies; returns their names."""
    first = folder / "first"
    first.mkdir()
    records = RunRecords(first, IDENTITY)
    for round_idx in range(1, NUM_ROUNDS + 1):
        add_round(records, round_idx, NUM_CLIENTS)
    held = {"client_id": range(NUM_CLIENTS), "clip_id": map(str, range(NUM_CLIENTS))}
    records.write_partition([pa.table({k: list(v) for k, v in held.items()})])
    row = {"name": "bench", "status": "finished", "model": "tiny", "algorithm": "fedavg"}
    records.write_run({**row, "config": "{}", "num_rounds": NUM_ROUNDS})
    tables = {name: read_table(first, name) for name in SCHEMAS}
    names = [f"bench-{i:05d}" for i in range(count)]
    for run_id in names:
        (folder / run_id).mkdir()
        for name, table in tables.items():
            if table.num_rows:
                copy = table.set_column(0, table.field(0), pa.array([run_id] * len(table)))
                write_parquet(folder / run_id / f"{name}.parquet", copy)
    for path in first.iterdir():
        path.unlink()
    first.rmdir()
    return names


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        names = write_runs(folder, options.runs)
        ten = names[:: max(len(names) // 10, 1)][:10]
        readings: dict[str, Callable[[], object]] = {
            "all tables": lambda: load_results(folder),
            "`rounds`": lambda: load_results(folder, tables=["rounds"]),
            "two columns of `rounds`": lambda: load_results(
                folder, tables={"rounds": ["round_idx", "loss"]}
            ),
            "all tables of 10 runs": lambda: load_results(folder, runs=ten),
            "`rounds` of 10 runs": lambda: load_results(folder, runs=ten, tables=["rounds"]),
        }
        opened = Opened()
        load_results(folder, runs=names[:1])  # Imports pandas.
        print(f"{len(names):,} runs of {NUM_ROUNDS} rounds and {NUM_CLIENTS} clients\n")
        print("| read | CPU s | files | MB |\n|---|---|---|---|")
        for label, read in readings.items():
            files, size, began = opened.num_files, read_bytes(), time.process_time()
            read()
            took_s = time.process_time() - began
            print(
                f"| {label} | {took_s:.2f} | {opened.num_files - files:,} "
                f"| {(read_bytes() - size) / 1e6:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
