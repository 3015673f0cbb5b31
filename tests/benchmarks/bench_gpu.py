"""Measures the networks on a GPU: `make bench-gpu`, or this file with arguments. At most 8 minutes.

Each figure is printed as soon as it is measured, by a process of its own with a time limit. A step
is a forward and a backward pass on one clip of 64 x 64 pixels; the published implementations'
figures were measured once, on one H100.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Milliseconds and peak MiB of a step of the published implementations: one H100 80 GB, torch 2.11,
# CUDA 13.0, 2026-11-26. RVRT's kernels were made to cast to float32 for bf16, unlike as released.
PUBLISHED = {
    ("rvrt", "fp32", "none"): (1251, 30720),
    ("rvrt", "bf16", "none"): (1280, 19036),
    ("vrt", "fp32", "none"): (1315, 53479),
    ("vrt", "bf16", "none"): (1413, 48029),
    ("vrt", "fp32", "blocks"): (1342, 31658),
    ("vrt", "bf16", "blocks"): (1428, 21766),
    ("iart", "bf16", "blocks"): (5716, 12622),
}
FRAMES = {"rvrt": 30, "vrt": 16, "iart": 16, "basicvsrpp": 30}
# Seconds for all, and for one figure.
TOTAL_S, ONE_S = 480, 120

STEPS: list[dict[str, Any]] = [
    {"model": model, "precision": precision, "checkpointing": checkpointing, "way": way}
    for model, precision, checkpointing, way in (
        ("rvrt", "bf16", "none", "graph"),
        ("vrt", "bf16", "none", "graph"),
        ("iart", "bf16", "blocks", "graph"),
        ("basicvsrpp", "bf16", "none", "graph"),
        ("rvrt", "fp32", "none", "graph"),
        ("vrt", "fp32", "none", "graph"),
        ("basicvsrpp", "fp32", "none", "graph"),
        ("vrt", "bf16", "blocks", "graph"),
        ("rvrt", "bf16", "blocks", "graph"),
        ("iart", "bf16", "attention", "graph"),
        ("basicvsrpp", "bf16", "none", "compiled"),
        ("rvrt", "bf16", "none", "compiled"),
        ("vrt", "bf16", "none", "compiled"),
        ("iart", "bf16", "blocks", "compiled"),
    )
]
UPSCALING: list[dict[str, Any]] = [
    {"model": model, "precision": precision, "num_frames": 128}
    for model, precision in (("rvrt", "bf16"), ("basicvsrpp", "bf16"), ("rvrt", "fp32"))
]
# Clients of the networks' own recipes, but for the crop, the frames and a batch of one.
SHARING: list[dict[str, Any]] = [
    {"model": model, "size": size, "precision": "bf16", "share": True}
    for model, size in (
        ("rvrt", "paper"),
        ("basicvsrpp", "paper"),
        ("vrt", "paper"),
        ("rvrt", "demo"),
        ("basicvsrpp", "demo"),
    )
]
FEDERATED: dict[str, Any] = {"model": "rvrt", "size": "demo", "rounds": 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="part of a row's JSON, e.g. '\"rvrt\"'")
    parser.add_argument("--profiles", type=Path, help="folder for each step's kernels")
    parser.add_argument("--tests", action="store_true", help="also run the tests marked gpu, first")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        task = json.loads(options.one)
        kinds = {"num_frames": _upscaling, "share": _sharing, "rounds": _federated}
        work = next((kinds[key] for key in kinds if key in task), _step)
        print(json.dumps(work(**task)))
        return
    import torch

    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU: a rehearsal"
    print(f"{card}; torch {torch.__version__}\n", flush=True)
    end = time.monotonic() + TOTAL_S
    if options.tests:
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:benchmark"]
        command += ["tests/unit/models", "tests/unit/training", "tests/unit/test_graphs.py"]
        command += ["tests/unit/federation/test_gpu_sharing.py"]
        subprocess.run(command, timeout=ONE_S, check=False)
    print(
        "| network | frames | precision | checkpointing | way | step ms | peak MiB | launches "
        "| GPU busy | first step s | recording s | published ms | its MiB | times as fast |"
    )
    print("|" + "---|" * 14, flush=True)
    for task in STEPS:
        if options.only in json.dumps(task):
            _print_step(task, _in_process(task | {"profiles": str(options.profiles or "")}, end))
    print("\n| network | precision | frames/s at 320x180 | GPU ms a frame |\n|---|---|---|---|")
    for task in UPSCALING:
        if options.only in json.dumps(task):
            done = _in_process(task, end)
            text = f"{done['fps']:.1f} | {done['gpu_ms']:.1f}" if "fps" in done else done["failed"]
            print(f"| {task['model']} | {task['precision']} | {text} |", flush=True)
    print(
        "\n| network | size | clients on a GPU | GPU busy with one | peak MiB | idle MiB | why |\n"
        "|---|---|---|---|---|---|---|"
    )
    for task in SHARING:
        if options.only in json.dumps(task):
            done = _in_process(task, end)
            text = done.get("failed") or (
                f"{done['count']} | {done['busy']:.0%} | {done['peak_mib']:.0f} | "
                f"{done['idle_mib']:.0f} | {done['why']}"
            )
            print(f"| {task['model']} | {task['size']} | {text} |", flush=True)
    if options.only in json.dumps(FEDERATED):
        print(f"\nA federated run: {json.dumps(_in_process(FEDERATED, end))}", flush=True)


def _print_step(task: dict[str, Any], done: dict[str, Any]) -> None:
    model, precision, checkpointing = task["model"], task["precision"], task["checkpointing"]
    head = f"| {model} | {FRAMES[model]} | {precision} | {checkpointing} | {task['way']} | "
    if "failed" in done:
        print(head + done["failed"], flush=True)
        return
    ms, mib = PUBLISHED.get((model, precision, checkpointing), (None, None))
    ratio = f"{ms / done['step_ms']:.2f}" if ms else "-"
    print(
        head + f"{done['step_ms']:.0f} | {done['peak_mib']:.0f} | {done['launches']} | "
        f"{done['busy']:.0%} | {done['first_s']:.1f} | {done['recording_s']:.1f} | {ms or '-'} | "
        f"{mib or '-'} | {ratio} |",
        flush=True,
    )


def _in_process(task: dict[str, Any], end: float) -> dict[str, Any]:
    left = min(ONE_S, end - time.monotonic())
    if left < 10:
        return {"failed": "no time left"}
    command = [sys.executable, "-m", "tests.benchmarks.bench_gpu", "--one", json.dumps(task)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=left)
    except subprocess.TimeoutExpired:
        return {"failed": f"stopped after {left:.0f} s"}
    if done.returncode:
        return {"failed": " / ".join(done.stderr.strip().splitlines()[-3:])[-600:]}
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def _step(
    model: str, precision: str, checkpointing: str, way: str, profiles: str
) -> dict[str, float]:
    import torch

    network = _network(model, precision, checkpointing=checkpointing)
    if way == "compiled":
        for module in network.modules():
            if isinstance(module, network.compiled_layers):  # type: ignore[arg-type]
                module.compile()
    lq = torch.rand(1, FRAMES[model], 3, 64, 64, generator=torch.Generator().manual_seed(0)).cuda()

    def step() -> torch.Tensor:
        network.zero_grad(set_to_none=True)
        sr = _call(network, lq, precision).float()
        loss = (sr - 0.5).square().add(1e-9).sqrt().mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        first_s = _seconds(step)
        torch.cuda.reset_peak_memory_stats()
        _seconds(step)
        peak_mib = torch.cuda.max_memory_allocated() / 2**20
        graph = torch.cuda.CUDAGraph()
        started = time.perf_counter()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            step()
        torch.cuda.synchronize()
        recording_s = time.perf_counter() - started
        step_s = statistics.median([_seconds(graph.replay) for _ in range(5)][1:])
        kernels = _kernels(graph.replay)
    busy_s = sum(seconds for _, seconds in kernels.values())
    if profiles:
        rows = sorted(kernels.items(), key=lambda row: -row[1][1])
        lines = [f"{1000 * s:9.2f} ms {n:6d} x {name[:200]}\n" for name, (n, s) in rows[:60]]
        file = Path(profiles, f"{model}-{precision}-{checkpointing}-{way}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(lines))
    return {
        "step_ms": 1000 * step_s,
        "peak_mib": peak_mib,
        "launches": sum(n for n, _ in kernels.values()),
        "busy": busy_s / step_s,
        "first_s": first_s,
        "recording_s": recording_s,
    }


def _upscaling(model: str, precision: str, num_frames: int) -> dict[str, float]:
    import numpy as np
    import torch

    from fedvsr.inference.config import TileConfig
    from fedvsr.inference.tiling import super_resolve_frames

    network: Any = _network(model, precision)
    lq = np.random.default_rng(0).integers(0, 256, (num_frames, 180, 320, 3), np.uint8)
    tiles = TileConfig(frames=16, overlap_frames=2)
    arrived = [
        time.perf_counter()
        for _ in super_resolve_frames(network, network.spec, lq, tiles, precision=precision)  # type: ignore[arg-type]
    ]
    part = torch.rand(1, 16, 3, 180, 320).cuda()
    with torch.inference_mode(), torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        _seconds(lambda: _call(network, part, precision))
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            _call(network, part, precision)
        _seconds(graph.replay)
        gpu_s = _seconds(graph.replay)
    # Frames arrive 14 at a time, a window less its overlap. The first two windows load kernels and
    # record the graph; the next five are timed whole.
    return {
        "fps": 70 / (arrived[98] - arrived[28]),
        "gpu_ms": 1000 * gpu_s / 14,
    }


def _sharing(model: str, size: str, precision: str, share: bool) -> dict[str, Any]:
    """How many clients `cluster.clients_per_gpu: auto` lets share this GPU."""
    from fedvsr.federation.gpu_sharing import MOST, Room, choose
    from fedvsr.lookup import load
    from fedvsr.training.config import LocalConfig
    from fedvsr.training.footprint import measure
    from fedvsr.training.local import LocalTrainer

    assert share
    settings = {"num_frames": FRAMES[model], "crop": 256, "batch_size": 1, "precision": precision}
    config = load("fedvsr.models", model).Config(size=size)
    algorithm = load("fedvsr.algorithms", "fedvsr").Config()
    taken = measure(LocalTrainer(config, algorithm, LocalConfig(**settings)))
    count, why = choose(taken, Room(MOST, MOST, 10))
    return {
        "count": count,
        "why": why,
        "busy": taken.busy,
        "peak_mib": taken.peak_bytes / 2**20,
        "idle_mib": taken.idle_bytes / 2**20,
    }


def _federated(model: str, size: str, rounds: int) -> dict[str, Any]:
    """A run of the preset `demo` whose clients share this GPU as `auto` chooses."""
    import tempfile

    import fedvsr
    from fedvsr.runs.events import RunStarted

    changes = {
        "model.name": model,
        "model.size": size,
        "federation.num_rounds": rounds,
        "local.steps": 4,
        "cluster.clients_per_gpu": "auto",
    }
    notes = list[str]()

    def look(event: object) -> None:
        notes.extend(event.notes if isinstance(event, RunStarted) else ())

    with tempfile.TemporaryDirectory() as out:
        run = fedvsr.run("demo", changes, address="local", out=out, on_event=look, progress=False)
        config = json.loads(run.table("runs")["config"].iloc[0])
        train_s = run.table("rounds")["train_s"].dropna().round(1).tolist()
        faults = run.table("faults")["kind"].tolist()
    return {
        "clients_per_gpu": config["cluster"]["clients_per_gpu"],
        "train_s": train_s,
        "faults": faults,
        "notes": [note for note in notes if "clients_per_gpu" in note],
    }


def _network(model: str, precision: str, **settings: object) -> torch.nn.Module:
    import torch

    from fedvsr import models
    from tests.golden import recipe

    if precision == "fp32":
        torch.set_float32_matmul_precision("high")
    network = models.build(model, **settings)
    recipe.fill(network)
    return network.cuda()


def _call(network: torch.nn.Module, lq: torch.Tensor, precision: Any) -> torch.Tensor:
    from fedvsr.precision import autocast

    with autocast(lq.device, precision):
        sr: torch.Tensor = network(lq)
    return sr


def _seconds(function: Callable[[], object]) -> float:
    import torch

    started = time.perf_counter()
    function()
    torch.cuda.synchronize()
    return time.perf_counter() - started


def _kernels(function: Callable[[], object]) -> dict[str, tuple[int, float]]:
    """Number of launches and seconds of each kernel, copies included."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        _seconds(function)
    times, counts = Counter[str](), Counter[str]()
    # key_averages() would take minutes for 300,000 events.
    assert profiled.profiler is not None
    for event in profiled.profiler.kineto_results.events():
        if "CUDA" in str(event.device_type()):
            times[event.name()] += event.duration_ns()
            counts[event.name()] += 1
    return {name: (counts[name], times[name] / 1e9) for name in counts}


if __name__ == "__main__":
    main()
