"""Seconds and memory of the networks: `make bench-models`, or this file with arguments.

Every figure comes from a process of its own, so that peaks do not mix. On a CPU the inputs are
those of the golden cases, on which the published implementations were timed, and the memory is the
peak of the resident set; on a GPU it is 64 x 64 crops and the peak that PyTorch allocated.
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
from contextlib import nullcontext

# The published implementations on two CPU threads with the golden inputs, fp32 (median of 3 wall
# seconds; peak MiB). RVRT's CUDA kernels ran as plain loops; VRT and IART recompute by default.
REFERENCE = {"vrt": (18.1, 58.4, 6247), "rvrt": (12.2, 75.6, 7004), "iart": (31.7, 69.9, 8916)}
# With these it is that each network fits the memory of its reference.
CHECKPOINTING = {"vrt": "blocks", "rvrt": "none", "iart": "blocks"}
GPU_FRAMES = (16, 30)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="vrt,rvrt,iart")
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
    where = torch.cuda.get_device_name() if gpu else f"CPU, {options.threads} threads"
    print(f"{where}; torch {torch.__version__}; median of {options.repeat}\n")
    print(
        "| network | size | frames | precision | checkpointing | forward s | forward + backward s "
        "| peak MiB | base MiB | reference forward + backward s | its peak MiB |"
    )
    print("|" + "---|" * 11)
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
                found = _in_process(task)
                reference = REFERENCE.get(model) if options.size == "paper" and not gpu else None
                print(
                    f"| {model} | {options.size} | {found['frames']} | {precision}"
                    f"{' compiled' if options.compile else ''} | {task['checkpointing'] or '-'} | "
                    f"{found['forward_s']:.2f} | {found['both_s']:.2f} | {found['peak_mib']:.0f} | "
                    f"{found['base_mib']:.0f} | {reference[1] if reference else '-'} | "
                    f"{reference[2] if reference else '-'} |",
                    flush=True,
                )


def _in_process(task: dict[str, object]) -> dict[str, float]:
    command = [sys.executable, "-m", "tests.benchmarks.bench_models", "--one", json.dumps(task)]
    # Waiting threads spin, as is PyTorch's default: right on a machine of one's own.
    threads = {"OMP_NUM_THREADS": str(task["threads"])}
    done = subprocess.run(command, stdout=subprocess.PIPE, env=os.environ | threads, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _measure(
    model: str,
    size: str,
    frames: int | None,
    precision: str,
    checkpointing: str | None,
    compiled: bool,
    repeat: int,
    threads: int,
) -> dict[str, float]:
    import torch

    from fedvsr import models
    from tests.golden import recipe

    torch.set_num_threads(threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settings = {"checkpointing": checkpointing} if checkpointing else {}
    if size != "paper":
        settings["size"] = size
    network = models.build(model, **settings)
    recipe.fill(network)
    network.to(device)
    if frames is None:
        lq = recipe.load("models", f"{model}_full").tensor("input")
    else:
        lq = torch.rand(1, frames, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    lq = lq.to(device)
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    call = torch.compile(network) if compiled else network

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, dtype) if dtype else nullcontext():
            sr: torch.Tensor = call(lq)
        return sr.float()

    def both() -> None:
        network.zero_grad()
        loss = (forward() - 0.5).square().add(1e-9).sqrt().mean()
        loss.backward()

    def timed(function: object) -> float:
        assert callable(function)
        walls = []
        # The first call pays for compilation and for memory that the system hands out.
        for _ in range(repeat + 1):
            started = time.perf_counter()
            function()
            if device.type == "cuda":
                torch.cuda.synchronize()
            walls.append(time.perf_counter() - started)
        return statistics.median(walls[1:])

    base = _peak_mib(device)
    with torch.no_grad():
        forward_s = timed(forward)
    both_s = timed(both)
    return {
        "frames": lq.shape[1],
        "forward_s": forward_s,
        "both_s": both_s,
        "peak_mib": _peak_mib(device),
        "base_mib": base,
    }


def _peak_mib(device: object) -> float:
    import torch

    if str(device).startswith("cuda"):
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
