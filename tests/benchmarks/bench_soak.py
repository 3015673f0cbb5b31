"""A long run of tiny rounds on Ray: what grows with the rounds, if anything.

    python -m tests.benchmarks.bench_soak --rounds 1000

It trains 4 clients, 2 a round, on a video that it draws, and scores every tenth round. Every
hundredth round it prints a line of Markdown: wall seconds of a round (median of the hundred), and
the private memory and open descriptors of the command, driver, evaluator and largest client.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import yaml

from tests.benchmarks.process_tree import FAIR
from tests.conftest import moving_texture, write_video

# By a part of the process's title: Ray names an actor's process after the call that it works on.
ROLES = {
    "command": "-m fedvsr",
    "driver": "ray::Driver",
    "evaluator": "ray::EvaluatorActor",
    "client": "ray::ClientActor",
}
EVERY = 100


def main() -> None:
    """Run, and print a table as it grows."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1000)
    num_rounds = parser.parse_args().rounds
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_video(folder / "video.mp4", moving_texture(48, 48, 64))
        (folder / "soak.yaml").write_text(yaml.safe_dump(_experiment(folder, num_rounds)))
        words = [sys.executable, "-m", "fedvsr", "run", str(folder / "soak.yaml")]
        process = subprocess.Popen(
            [*words, "--out", str(folder / "out")],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **FAIR},
        )
        _follow(process)
        size = sum(path.stat().st_size for path in (folder / "out").rglob("*") if path.is_file())
        print(f"\nexit {process.wait()}; the run's folder has {size / 1e6:.1f} MB")


def _experiment(folder: Path, num_rounds: int) -> dict[str, object]:
    return {
        "name": "soak",
        "data": {
            "videos": [str(folder / "video.mp4")],
            "clip_frames": 4,
            "num_clients": 4,
            "cache_dir": str(folder / "cache"),
        },
        "model": {"name": "tiny", "channels": 4, "blocks": 1},
        "algorithm": {"name": "fedvsr"},
        "federation": {"num_rounds": num_rounds, "clients_per_round": 2},
        "local": {"steps": 1, "batch_size": 1, "num_frames": 3, "crop": 32},
        "evaluation": {"num_threads": 1, "every_rounds": 10, "max_frames": 1},
        "cluster": {"slots": 2},
    }


def _follow(process: subprocess.Popen[str]) -> None:
    names = [f"{role}, {unit}" for role in ROLES for unit in ("MB", "descriptors")]
    print("| round | s a round |", " | ".join(names), "|")
    print("|---|---|", "---|" * len(names), sep="")
    took_s, before = list[float](), time.monotonic()
    assert process.stdout
    for line in process.stdout:
        if not line.startswith("round "):
            continue
        now, round_idx = time.monotonic(), int(line.split()[1].partition("/")[0])
        took_s, before = [*took_s[1 - EVERY :], now - before], now
        # The first rounds start processes.
        if round_idx == 10 or (round_idx and round_idx % EVERY == 0):
            held = _held(psutil.Process(process.pid))
            cells = [f"{held[role][i]:.0f}" for role in ROLES for i in (0, 1)]
            typical_s = sorted(took_s)[len(took_s) // 2]
            print(f"| {round_idx} | {typical_s:.2f} |", " | ".join(cells), "|", flush=True)


def _held(root: psutil.Process) -> dict[str, tuple[float, int]]:
    """Private megabytes and open descriptors by role; of several clients, the largest of each."""
    held = dict.fromkeys(ROLES, (0.0, 0))
    for process in [root, *root.children(recursive=True)]:
        try:
            title = " ".join(process.cmdline())
            memory, num_descriptors = process.memory_info(), process.num_fds()
        except psutil.Error:
            continue
        for role, part in ROLES.items():
            if part in title and (role != "command" or process == root):
                megabytes, descriptors = held[role]
                private = (memory.rss - memory.shared) / 1e6
                held[role] = max(megabytes, private), max(descriptors, num_descriptors)
    return held


if __name__ == "__main__":
    main()
