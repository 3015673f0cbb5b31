"""Energy of a GPU or of this machine's processors, and what a piece of work takes of a GPU.

A GPU's energy is read through NVML (extra `energy`), that of processors through the kernel's
powercap files (RAPL), which most systems let only root read. What cannot be read is None.
"""

from __future__ import annotations

import re
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

# Zones of whole processors; their parts, `intel-rapl:0:0`, are counted in them.
_POWERCAP, _ZONE = Path("/sys/class/powercap"), re.compile(r"intel-rapl:\d+")
# Seconds between two looks at a GPU: NVML's own values are means over 1/6 s to 1 s.
_LOOK_S = 0.2
# And at most for the last of these looks, when a measurement ends.
_LEAVE_S = 5.0


class Meter:
    """Measures from `with Meter(device) as meter:` to the end of the block.

    Both counters are those of the whole GPU or machine, so what others do there meanwhile counts.

    Args:
        device: the GPU that does the work; without one, `energy_j` is that of all processors.
    """

    energy_j: float | None = None
    """Joules."""
    gpu_memory_bytes: int | None = None
    """Peak of the GPU memory that this process's tensors took."""
    gpu_utilisation: float | None = None
    """Share of the time in which the GPU computed, 0 to 1."""

    def __init__(self, device: torch.device | None = None) -> None:
        self._gpu = _Gpu(device) if device and device.type == "cuda" else None

    def __enter__(self) -> Meter:
        if self._gpu:
            self._gpu.start()
            self._before = self._gpu.joules()
        else:
            self._before = _read_zones()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if self._gpu:
            # First: a GPU that failed raises in the next line, and the thread must not outlive it.
            self.gpu_utilisation = self._gpu.stop()
            after = self._gpu.joules()
            self.gpu_memory_bytes = torch.cuda.max_memory_allocated(self._gpu.device)
        else:
            after = _read_zones()
        if self._before is not None and after is not None:
            self.energy_j = sum(_difference(a, b) for a, b in zip(self._before, after, strict=True))

    def taken(self) -> dict[str, Any]:
        """The measures as fields of a `ClientReport`, in which unknown ones are 0."""
        names = ("energy_j", "gpu_memory_bytes", "gpu_utilisation")
        return {name: value for name in names if (value := getattr(self, name)) is not None}


# Joules of a counter, and those at which it starts again from 0.
_Counter = tuple[float, float]


def _difference(before: _Counter, after: _Counter) -> float:
    used = after[0] - before[0]
    return used if used >= 0 else used + after[1]


def _read_zones() -> list[_Counter] | None:
    """The counters of this machine's processors; None if there are none, or one is unreadable."""
    try:
        zones = sorted(path for path in _POWERCAP.iterdir() if _ZONE.fullmatch(path.name))
        counters = [
            (_microjoules(zone / "energy_uj"), _microjoules(zone / "max_energy_range_uj"))
            for zone in zones
        ]
    except (OSError, ValueError):
        return None
    return counters or None


def _microjoules(path: Path) -> float:
    return int(path.read_text()) / 1e6


class _Gpu:
    """A GPU as NVML sees it; without NVML, only its memory is known."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._shares = list[float]()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._nvml, self._handle = _nvml_handle(device)

    def joules(self) -> list[_Counter] | None:
        if self._nvml is None:
            return None
        # All work of the block that is queued has been done.
        torch.cuda.synchronize(self.device)
        try:
            return [(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle) / 1e3, 0.0)]
        except self._nvml.NVMLError:
            # GPUs before Volta have no counter.
            return None

    def start(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)
        if self._nvml is not None:
            self._thread.start()

    def stop(self) -> float | None:
        self._ended.set()
        if self._nvml is not None:
            # It only looks; a driver that does not answer must not hold the training up.
            self._thread.join(timeout=_LEAVE_S)
        return sum(self._shares) / len(self._shares) if self._shares else None

    def _look(self) -> None:
        while not self._ended.wait(_LOOK_S):
            with suppress(self._nvml.NVMLError):
                rates = self._nvml.nvmlDeviceGetUtilizationRates(self._handle)
                self._shares.append(rates.gpu / 100)


def _nvml_handle(device: torch.device) -> tuple[Any, Any]:
    """NVML and its handle of a GPU; twice None if the package or the GPU is missing."""
    try:
        import pynvml
    except ImportError:
        return None, None
    try:
        pynvml.nvmlInit()
        # By its UUID: indices depend on CUDA_VISIBLE_DEVICES.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        return pynvml, pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except (pynvml.NVMLError, AttributeError):
        return None, None
