"""What a client's training takes of a GPU: memory, and the share of the time that it computes."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch.profiler import ProfilerActivity, profile

from fedvsr.algorithms.base import start
from fedvsr.training.local import LocalTrainer
from fedvsr.training.optimiser import make_optimiser

# The first step loads kernels, the second records them, the third is like all others.
_WARM_UP_STEPS = 3


@dataclass(frozen=True)
class Footprint:
    """What one client takes of a GPU while it trains."""

    device: str
    """The GPU's name."""
    total_bytes: int
    """Its memory."""
    peak_bytes: int
    """Memory that the client's process takes, with the GPU's own share for a process."""
    idle_bytes: int
    """Memory that it takes while it waits for its next task."""
    busy: float
    """Share of a step's time in which the GPU computes, 0 to 1."""


def measure(trainer: LocalTrainer) -> Footprint:
    """Measure some steps on random frames, on a GPU that nothing else uses."""
    total = torch.cuda.mem_get_info()[1]
    with trainer.on_device():
        peak, busy = _steps(trainer)
        # As a client's process does after its task, which the optimiser does not outlast.
        trainer.release()
        idle = _taken()
    return Footprint(torch.cuda.get_device_name(), total, peak, min(idle, peak), busy)


def _steps(trainer: LocalTrainer) -> tuple[int, float]:
    """The memory that steps take, and the share of a step's time in which the GPU computes."""
    local, spec = trainer.local, trainer.spec
    frames = local.num_frames * (2 if local.mirror else 1)
    sides = (local.crop // spec.scale, local.crop)
    draw = torch.Generator().manual_seed(0)
    lq, gt = (
        torch.randint(
            256, (local.batch_size, frames, 3, n, n), dtype=torch.uint8, generator=draw
        ).pin_memory()
        for n in sides
    )
    params = trainer.parameters.values()
    state = {"params": params} if trainer.algorithm.contrasts else {}
    trainer.gradients.begin(start(trainer.algorithm, params), state)
    trained = trainer.parameters.trained
    optimiser = make_optimiser(local, trained, [])
    scaler = torch.amp.GradScaler("cuda", enabled=local.precision == "fp16")

    def step() -> None:
        trainer.gradients.compute((lq, gt), scaler)
        scaler.step(optimiser)
        scaler.update()
        torch.cuda.synchronize()

    for _ in range(_WARM_UP_STEPS):
        step()
    started = time.perf_counter()
    step()
    wall_s = time.perf_counter() - started
    with profile(activities=[ProfilerActivity.CUDA], acc_events=True) as profiled:
        step()
    assert profiled.profiler is not None
    events = profiled.profiler.kineto_results.events()
    busy_s = sum(e.duration_ns() for e in events if "CUDA" in str(e.device_type())) / 1e9
    return _taken(), min(1.0, busy_s / wall_s)


def _taken() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free
