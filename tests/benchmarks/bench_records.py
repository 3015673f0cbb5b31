"""What a run's records cost: `make bench-records`, or this file with arguments.

The run's own writer adds rounds, which nobody trains, as fast as it can. A row of the table is a
tenth of the run: bytes that the process wrote and its processor time, both by round, and what one
look at the run costs then: at its last round, and at all rows while these are a million at most.
Seconds between two writings are few, so that tables are written often.

`--rounds 10000 --clients 1000` makes 10 million rows of clients in three minutes of one core, if
`--folder` is in memory (`/dev/shm`); on a disk, the seconds of its synchronisation come on top.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa

from fedvsr.recording import RunRecords
from fedvsr.records import read_table
from fedvsr.schemas import SCHEMAS

# Rows of clients up to which all are read.
MOST_READ = 10**6
IDENTITY = {"run_id": "bench", "config_hash": "c" * 64, "seed": 1, "fedvsr_version": "0"}


def written_bytes() -> int:
    """Bytes that this process has written so far, to files or elsewhere."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["wchar"])


def memory_mb() -> float:
    """Memory that this process has now."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def add_round(records: RunRecords, round_idx: int, num_clients: int) -> None:
    """Add a round of clients, and its scores of four clips."""
    clients = [
        {"client_id": (round_idx * num_clients + i) % 1_000_000, "position": i}
        | {"num_samples": 16, "num_steps": 4, "loss": 1 / (round_idx + i + 1), "lr": 1e-4}
        | {"weight": 1 / num_clients, "attempts": 1, "rejected": False, "upload_failed": False}
        | {"upload_bytes": 10**6, "train_s": 0.1 * i, "started_s": 0.01 * i, "node": "n" * 56}
        for i in range(num_clients)
    ]
    records.write_round(round_idx, {"num_sampled": num_clients, "train_s": 1.0}, clients)
    scores = [
        {"clip_id": f"{i:03d}", "test_set": "REDS4", "num_frames": 100, "psnr_db": 30.0 + i}
        for i in range(4)
    ]
    records.write_scores(round_idx, {"psnr_db": 31.5, "evaluate_s": 1.0}, scores)


def read_s(folder: Path, since: int | None) -> float:
    """CPU seconds to read the run's tables, or their rows since a round."""
    return cpu_s(lambda: [read_table(folder, table, since=since) for table in SCHEMAS])


def cpu_s(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=100, help="clients a round")
    parser.add_argument("--write-s", type=float, default=0.2, help="seconds between writings")
    parser.add_argument("--folder", type=Path, help="where the run's folder is made")
    options = parser.parse_args()
    print(
        "| rounds | bytes a round | CPU ms a round | read the last round, CPU ms "
        "| read all, CPU ms | memory, MB |"
    )
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        records = RunRecords(folder, IDENTITY, options.write_s)
        step = max(options.rounds // 10, 1)
        for first in range(1, options.rounds + 1, step):
            before, began = written_bytes(), time.process_time()
            pa.default_memory_pool().release_unused()
            for round_idx in range(first, first + step):
                add_round(records, round_idx, options.clients)
            took_s, size = time.process_time() - began, written_bytes() - before
            memory = memory_mb()
            last = first + step - 1
            new_s, all_s = read_s(folder, last), None
            if last * options.clients <= MOST_READ:
                all_s = read_s(folder, None)
            print(
                f"| {last:,} | {size / step:,.0f} | {1e3 * took_s / step:.2f} | {1e3 * new_s:.1f} "
                f"| {'' if all_s is None else f'{1e3 * all_s:.1f}'} | {memory:,.0f} |",
                flush=True,
            )
        before = written_bytes()
        end_s = cpu_s(lambda: records.write_run({"status": "finished"}))
        size = sum(path.stat().st_size for path in folder.iterdir())
        print(
            f"\nthe end: {written_bytes() - before:,} bytes, {end_s:.2f} CPU s, "
            f"{memory_mb():,.0f} MB; the folder has {size:,} bytes"
        )


if __name__ == "__main__":
    main()
