"""What registered clients cost the driver: `make bench-clients`, or this file with arguments.

A run goes through its real driver: rounds are drawn, recorded and saved. Its clients have one clip
each, which does not exist, and an executor that trains nobody sends their updates back. Each row is
from a process of its own: one starts the run and ends after some rounds, the next one resumes it.

The table of clips is made as columns; with `--prepare`, of a store's index, as a run does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fedvsr.config import ExperimentConfig
from fedvsr.data.client_clips import ClientClips, ClipTable
from fedvsr.data.split import Split
from fedvsr.data.store import write_manifest
from fedvsr.federation.aggregation import Aggregated, RoundSum, aggregate_here
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.executors import (
    ClientOutcome,
    Clients,
    Fault,
    Pending,
    Scorer,
    TrainedClient,
)
from fedvsr.inference.evaluate import Evaluator
from fedvsr.inference.scores import Scored
from fedvsr.messages import ClientReport, ClientTask, ClientUpdate, Vectors
from fedvsr.params import FloatVector
from fedvsr.runs.events import RoundRecorded, RunStarted
from fedvsr.runs.execution import execute
from fedvsr.runs.launch import prepare_data
from fedvsr.runs.run import open_run

ROUNDS = 20


class IdleExecutor:
    """Sends the global parameters back as each client's, and scores nothing."""

    name, device_name = "idle", "none"

    def __init__(self, clients: Clients) -> None:
        self._clients = clients

    def run_round(
        self,
        tasks: Sequence[ClientTask],
        shared: Vectors,
        states: ClientStates,
        upcoming: Sequence[int] = (),
    ) -> Iterator[TrainedClient | Fault]:
        for task in tasks:
            assert self._clients.clips[task.client_id]
            loss = 1 / (1 + task.client_id)
            report = ClientReport(task.client_id, task.round_idx, 1, 1, loss, loss, 0.1)
            yield TrainedClient(
                ClientOutcome(report), ClientUpdate({"params": shared["params"]}, {})
            )

    def start_scorer(self, make: Callable[[], Evaluator]) -> Scorer:
        return self

    def score(self, params: FloatVector, pictures: bool = True) -> Pending:
        return self

    def ready(self) -> bool:
        return True

    def result(self) -> Scored:
        return Scored(scores=[], pictures={}, wall_s=0.0)

    def aggregate(self, work: RoundSum) -> Iterator[Fault | Aggregated]:
        yield aggregate_here(work)

    def take_faults(self) -> list[tuple[str, str]]:
        return []

    def close(self) -> None:
        pass


def write_index(folder: Path, num_clips: int) -> None:
    """Write the index of a store of clips that do not exist."""
    folder.mkdir()
    shape = {"num_frames": 100, "height": 256, "width": 448, "scale": 4}
    entries = (
        {"clip_id": f"clip-{i:07d}", "label": f"kind-{i % 50:02d}", "sha256": f"{i:064x}"} | shape
        for i in range(num_clips + 1)
    )
    write_manifest(folder, entries, "folder", "bi", {})


def split_of(num_clients: int) -> Split:
    """The clips of such a store, dealt in their order."""
    ids = np.arange(num_clients)
    columns = {
        "clip_id": pc.binary_join_element_wise("clip", pa.array(ids).cast(pa.string()), "-"),
        "label": pa.DictionaryArray.from_arrays(
            pa.array(ids % 50, pa.int32()), [f"kind-{i:02d}" for i in range(50)]
        ),
        **{"folder": "/store", "num_frames": 100, "height": 256, "width": 448, "scale": 4},
        "sha256": "0" * 64,
    }
    clips = ClipTable.of_columns(columns, num_clients)
    return Split(ClientClips(clips, ids + 1), (), ())


def config_of(store: Path, num_clients: int, sampling: str) -> ExperimentConfig:
    last = f"clip-{num_clients:07d}"
    sections = {
        "name": "clients",
        "data": {"train": [str(store)], "held_out": [last], "num_clients": num_clients},
        "model": {"name": "tiny", "channels": 4, "blocks": 1},
        "algorithm": {"name": "fedavg"},
        "federation": {"num_rounds": 10**6, "clients_per_round": 64, "sampling": sampling},
        "local": {"steps": 1, "num_frames": 3, "crop": 32},
        "evaluation": {"every_rounds": 10**6},
    }
    return ExperimentConfig.model_validate(sections)


def memory_mb() -> float:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


def one(folder: Path, num_clients: int, sampling: str) -> None:
    """Start or resume the run in a folder, and print what it cost as JSON."""
    began, empty_mb = time.process_time(), memory_mb()
    config = config_of(folder / "store", num_clients, sampling)
    has_index = (folder / "store").is_dir()
    split = prepare_data(config, lambda *_: None) if has_index else split_of(num_clients)
    prepared, prepared_mb = time.process_time(), memory_mb()
    events = execute(open_run(config, folder / "run"), split, IdleExecutor)
    ends = list[float]()
    for event in events:
        if isinstance(event, RunStarted):
            started = time.process_time()
        elif isinstance(event, RoundRecorded):
            ends.append(time.process_time())
            if len(ends) > ROUNDS:
                break
    events.close()
    costs = {
        "prepare_s": prepared - began,
        "start_s": started - prepared,
        "round_ms": 1e3 * median(b - a for a, b in pairwise(ends)),
        "empty_mb": empty_mb,
        "prepared_mb": prepared_mb,
        "peak_mb": memory_mb(),
    }
    print(json.dumps(costs))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", default="1000,1000000", help="registered clients")
    parser.add_argument("--sampling", default="uniform")
    parser.add_argument("--prepare", action="store_true", help="read and deal a store's index")
    parser.add_argument("--one", nargs=2, metavar=("FOLDER", "CLIENTS"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        one(Path(options.one[0]), int(options.one[1]), options.sampling)
        return
    print(
        "| clients | process | prepare, CPU s | start, CPU s | round, CPU ms | imported, MB "
        "| prepared, MB | peak, MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory() as name:
            if options.prepare:
                write_index(Path(name) / "store", size)
            for process in ("first", "resumed"):
                command = [sys.executable, "-m", "tests.benchmarks.bench_clients"]
                command += ["--sampling", options.sampling, "--one", name, str(size)]
                done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                costs = json.loads(done.stdout.splitlines()[-1])
                print(
                    f"| {size:,} | {process} | {costs['prepare_s']:.1f} | {costs['start_s']:.1f} "
                    f"| {costs['round_ms']:.1f} "
                    f"| {costs['empty_mb']:,.0f} | {costs['prepared_mb']:,.0f} "
                    f"| {costs['peak_mb']:,.0f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
