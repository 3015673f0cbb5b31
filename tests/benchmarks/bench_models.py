"""Measures seconds and memory of the networks: `make bench-models`, or this file with arguments.

Every figure comes from its own process, so that peaks do not mix. On a CPU, the inputs are those of
the golden cases (without one, 5 frames of 64 x 64), with which the published implementations were
timed, and the memory is the peak of the resident set. On a GPU, the inputs are 64 x 64 crops, and
the memory is PyTorch's peak.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fedvsr.precision import Precision

# The published implementations on two CPU threads with the golden inputs, fp32 (median of 3 wall
# seconds; peak MiB). RVRT's CUDA kernels ran as plain loops; VRT and IART recompute by default.
# BasicVSR++ was timed on a busy machine, so CPU seconds are given (one run).
REFERENCE = {
    "vrt": (18.1, 58.4, 6247),
    "rvrt": (12.2, 75.6, 7004),
    "iart": (31.7, 69.9, 8916),
    "basicvsrpp": (18.8, 50.8, 1964),
}
# With these, each network fits in the memory of its reference.
CHECKPOINTING = {"vrt": "blocks", "rvrt": "none", "iart": "blocks", "basicvsrpp": "blocks"}
GPU_FRAMES = (16, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vrt,rvrt,iart,basicvsrpp")
    parser.add_argument("--size", default="paper", help="paper, or demo: the packaged small ones")
    parser.add_argument("--precisions", default="fp32,bf16", help="of fp32, bf16, fp16")
    parser.add_argument("--checkpointing", help="default: " + str(CHECKPOINTING))
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(_measure(**json.loads(options.one))))
        return
    _table(options)


def _table(options: argparse.Namespace) -> None:
    import torch

    gpu = torch.cuda.is_available()
    device = torch.cuda.get_device_name() if gpu else f"CPU, {options.threads} threads"
    print(f"{device}; torch {torch.__version__}; median of {options.repeat}\n")
    print(
        "| network | size | frames | precision | checkpointing | forward s | forward + backward s "
        "| its CPU s | peak MiB | base MiB | reference forward + backward s | its peak MiB |"
    )
    print("|" + "---|" * 12)
    for model in options.models.split(","):
        for frames in GPU_FRAMES if gpu else (None,):
            for precision in options.precisions.split(","):
                task = {
                    "model": model,
                    "size": options.size,
                    "frames": frames,
                    "precision": precision,
                    "checkpointing": options.checkpointing or CHECKPOINTING.get(model),
                    "compiled": options.compile,
                    "repeat": options.repeat,
                    "threads": options.threads,
                }
                figures = _in_process(task)
                reference = REFERENCE.get(model) if options.size == "paper" and not gpu else None
                print(
                    f"| {model} | {options.size} | {figures['frames']} | {precision}"
                    f"{' compiled' if options.compile else ''} | {task['checkpointing'] or '-'} | "
                    f"{figures['forward_s']:.2f} | {figures['both_s']:.2f} | "
                    f"{figures['both_cpu_s']:.2f} | "
                    f"{figures['peak_mib']:.0f} | {figures['base_mib']:.0f} | "
                    f"{reference[1] if reference else '-'} | "
                    f"{reference[2] if reference else '-'} |",
                    flush=True,
                )


def _in_process(task: dict[str, object]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_models", "--one", json.dumps(task)]
    # Waiting threads spin, as is PyTorch's default, which is right on an idle machine.
    threads = {"OMP_NUM_THREADS": str(task["threads"])}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | threads, check=True)
    figures: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _measure(
    model: str,
    size: str,
    frames: int | None,
    precision: Precision,
    checkpointing: str | None,
    compiled: bool,
    repeat: int,
    threads: int,
) -> dict[str, float]:
    import torch

    from fedvsr import models
    from fedvsr.heap import keep_freed
    from fedvsr.precision import autocast
    from tests.golden import recipe

    keep_freed()
    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"checkpointing": checkpointing} if checkpointing else {}
    if size != "paper":
        settings["size"] = size
    network = models.build(model, **settings)
    recipe.fill(network)
    network.to(device)
    lq = _input(model, frames).to(device)
    call = torch.compile(network) if compiled else network

    def forward() -> torch.Tensor:
        with autocast(device, precision):
            sr: torch.Tensor = call(lq)
        return sr.float()

    def both() -> None:
        network.zero_grad()
        loss = (forward() - 0.5).square().add(1e-9).sqrt().mean()
        loss.backward()

    def timed(function: object) -> tuple[float, float]:
        """Median wall and CPU seconds."""
        assert callable(function)
        walls, cpus = [], []
        # The first call includes compilation and the allocation of memory; it is not counted.
        for _ in range(repeat + 1):
            started, cpu = time.perf_counter(), time.process_time()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - started)
            cpus.append(time.process_time() - cpu)
        return statistics.median(walls[1:]), statistics.median(cpus[1:])

    base = _peak_mib(device)
    with torch.no_grad():
        forward_s, _ = timed(forward)
    both_s, both_cpu_s = timed(both)
    return {
        "frames": lq.shape[1],
        "forward_s": forward_s,
        "both_s": both_s,
        "both_cpu_s": both_cpu_s,
        "peak_mib": _peak_mib(device),
        "base_mib": base,
    }


def _input(model: str, frames: int | None) -> torch.Tensor:
    """Clips of `frames` frames; of None, the network's golden input, or 5 frames if it has none."""
    import torch

    from tests.golden import recipe

    if frames is None and (recipe.FOLDER / "models" / f"{model}_full.npz").is_file():
        return recipe.load("models", f"{model}_full").tensor("input")
    generator = torch.Generator().manual_seed(0)
    return torch.rand(1, frames or 5, 3, 64, 64, generator=generator)


def _peak_mib(device: object) -> float:
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
