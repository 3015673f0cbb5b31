"""What a round costs beside training: `make bench-federation`, or this file with arguments.

40 clients, 4 a round, 2 slots, parameters in 300 tensors. A client loads the global parameters into
its network, adds noise in place and sends them; FedAvg; nothing is scored, nothing is saved. The
rounds are the package's own (`run_rounds`, `RayExecutor`, `LocalTrainer`, in a driver actor).

`make bench-federation-peers` runs Flower, pfl-research and BlazeFL on the same work between ours,
each by its public interface and in an environment of its own. pfl-research simulates in one
process, BlazeFL in threads of one; Flower and ours have processes, and Ray's share is in all that
is counted. Trust ratios and CPU seconds on a machine that others work on, not wall times.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import ray
import torch

from tests.benchmarks.plasma_rounds import average
from tests.benchmarks.process_tree import WARM_UP, Watched, watch

HERE = Path(__file__).parent
OURS = "tests.benchmarks.federation_rounds"
PEERS = {"Flower": "flower", "pfl-research": "pfl", "BlazeFL": "blazefl"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", default="1e6,13e6,36e6")
    parser.add_argument("--rounds", type=int, default=20, help="timed rounds of a command")
    parser.add_argument("--turns", type=int, default=1, help="times that all take their turn")
    parser.add_argument("--peers", type=Path, help="folder of the peers' environments")
    parser.add_argument("--only", default="rounds,cohorts,registered,bits")
    options = parser.parse_args()
    print(
        f"{os.cpu_count()} CPU cores, load {os.getloadavg()[0]:.1f}; "
        f"torch {torch.__version__}, ray {ray.__version__}; {options.turns} x {options.rounds} "
        f"rounds after a warm-up of {WARM_UP}\n"
    )
    only = options.only.split(",")
    if "rounds" in only:
        for size in options.params.split(","):
            compare(int(float(size)), options)
    if "cohorts" in only:
        cohorts()
    if "registered" in only:
        registered()
    if "bits" in only:
        bits(options)


def compare(params: int, options: argparse.Namespace) -> None:
    """One number of parameters, all contestants in turns."""
    common = ["--params", params, "--rounds", options.rounds]
    commands = {
        # All of 4 clients have a living actor; most of 40 have to be given one, in seconds.
        "fedvsr, 4 clients": module(OURS, *common, "--clients", 4),
        "fedvsr, 40 clients": module(OURS, "--params", params, "--rounds", 8),
        "fedvsr, 40 clients, isolation slot": module(OURS, *common, "--shared", 1),
        "bare Ray": module("tests.benchmarks.plasma_rounds", *common),
        **peers(options, *common),
    }
    seen: dict[str, list[Watched]] = {name: [] for name in commands}
    floors = []
    for _ in range(options.turns):
        for name, command in commands.items():
            print(f"{params:,}: {name}", file=sys.stderr)
            seen[name].append(watch(command))
        floors.append(floor_s(params))
    print(f"{params:,} parameters, {4e-6 * params:.0f} MB\n")
    columns = ("ms a round", "CPU-s a round", "first round, s (CPU-s)", "driver, models", "all, MB")
    heads = ("framework", *columns, "down, MB", "up, MB", "gap, ms")
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for name, turns in seen.items():
        print("| " + " | ".join((name, *cells(turns, params))) + " |")
    print(
        f"| reading 4 updates, writing their mean: NumPy, one thread | "
        f"{1e3 * statistics.median(floors):.0f} |" + " |" * (len(heads) - 2)
    )
    if options.peers:
        print()
        for name in PEERS:
            for ours in [n for n in commands if n.startswith("fedvsr")]:
                wall, cpu = (
                    middle(seen[name], what) / middle(seen[ours], what)
                    for what in ("round_s", "cpu_s")
                )
                print(f"- {name} / {ours}: {wall:.1f} x the time, {cpu:.1f} x the CPU seconds")
    print(flush=True)


def peers(options: argparse.Namespace, *arguments: object) -> dict[str, list[str]]:
    """The commands of the peers that are installed."""
    if not options.peers:
        return {}
    return {
        name: [
            str(options.peers / peer / "bin" / "python"),
            str(HERE / "peers" / f"{peer}_rounds.py"),
            *map(str, arguments),
        ]
        for name, peer in PEERS.items()
    }


def bits(options: argparse.Namespace) -> None:
    """Who ends with the same bits twice: 40 clients, draws seeded alike."""
    common = ["--params", 1_000_000, "--rounds", 8]
    print("8 rounds, 1,000,000 parameters, 40 clients, each command run twice\n")
    print("| framework | same parameters |\n|---|---|")
    for name, command in {"fedvsr": module(OURS, *common), **peers(options, *common)}.items():
        first, second = (watch(command).facts["sha256"] for _ in range(2))
        print(f"| {name} | {'yes' if first == second else 'no'} |", flush=True)
    print()


def cells(turns: Sequence[Watched], params: int) -> tuple[str, ...]:
    model, last = 4 * params, turns[0].rounds[-1]
    gaps = [e["gap_s"] for turn in turns for e in turn.timed if e.get("gap_s") is not None]
    return (
        f"{1e3 * middle(turns, 'round_s'):.0f}",
        f"{middle(turns, 'cpu_s'):.3f}",
        f"{middle(turns, 'first_round_s'):.1f} ({turns[0].rounds[0]['cpu_s']:.1f})",
        f"{max(turn.driver_peak_bytes for turn in turns) / model:.2f}",
        f"{middle(turns, 'pss_bytes') / 1e6:.0f}",
        *(f"{last[way] / 1e6:.0f}" if way in last else "" for way in ("down", "up")),
        f"{1e3 * statistics.median(gaps):.0f}" if gaps else "",
    )


def cohorts() -> None:
    """The driver's memory by clients a round."""
    params = 4_000_000
    print(f"Driver by clients a round, {params:,} parameters, {4e-6 * params:.0f} MB\n")
    print("| clients a round | driver above its base, models |\n|---|---|")
    for cohort in (4, 16, 64):
        done = watch(
            module(OURS, "--params", params, "--rounds", 1, "--cohort", cohort, "--clients", cohort)
        )
        print(f"| {cohort} | {done.driver_peak_bytes / (4 * params):.2f} |", flush=True)
    print()


def registered() -> None:
    """What clients cost that are not drawn. No processes: theirs would hide it."""
    print("64 clients a round, 1,000 parameters, one process\n")
    print("| registered | ms a round | CPU-ms a round | memory, MB |\n|---|---|---|---|")
    for clients in (1_000, 100_000):
        toy = ("--params", 1000, "--rounds", 20, "--cohort", 64, "--serial", 1)
        done = watch(module(OURS, *toy, "--clients", clients))
        memory = (done.driver_base_bytes + done.driver_peak_bytes) / 1e6
        wall, cpu = 1e3 * done.round_s, 1e3 * done.cpu_s
        print(f"| {clients:,} | {wall:.1f} | {cpu:.1f} | {memory:.0f} |", flush=True)


def floor_s(params: int) -> float:
    """Median seconds in which plain NumPy averages four vectors."""
    vectors = [np.full(params, i, np.float32) for i in range(4)]
    out = np.zeros(params, np.float32)
    took = []
    for _ in range(9):
        began = time.perf_counter()
        average(vectors, out)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def middle(turns: Sequence[Watched], what: str) -> float:
    return statistics.median(getattr(turn, what) for turn in turns)


def module(name: str, *arguments: object) -> list[str]:
    return [sys.executable, "-m", name, *map(str, arguments)]


if __name__ == "__main__":
    main()
