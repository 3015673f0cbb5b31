from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

from fedvsr import energy
from fedvsr.energy import Meter


def write_zones(folder: Path, **joules: float) -> None:
    for name, value in joules.items():
        zone = folder / name.replace("_", ":").replace("rapl", "intel-rapl")
        zone.mkdir(parents=True, exist_ok=True)
        (zone / "energy_uj").write_text(f"{round(value * 1e6)}\n")
        (zone / "max_energy_range_uj").write_text("1000000000\n")


def test_the_energy_of_all_processors_is_summed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    # A part of a processor, and the whole machine by another counter, count not.
    write_zones(tmp_path, rapl_0=10, rapl_1=999, rapl_0_0=5)
    (tmp_path / "intel-rapl-mmio:0").mkdir()
    with Meter() as meter:
        # The second processor's counter passes 1,000 J and starts again from 0.
        write_zones(tmp_path, rapl_0=12.5, rapl_1=4, rapl_0_0=500)
    assert meter.energy_j == pytest.approx(2.5 + 5)
    assert meter.taken() == {"energy_j": pytest.approx(7.5)}


def test_without_a_readable_counter_nothing_is_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path)
    with Meter() as none:
        pass
    write_zones(tmp_path, rapl_0=1)
    # Most systems let only root read it; here not even root can.
    (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    with Meter() as unreadable:
        write_zones(tmp_path, rapl_0=2)
    monkeypatch.setattr(energy, "_POWERCAP", tmp_path / "missing")
    with Meter() as missing:
        pass
    for meter in (none, unreadable, missing):
        assert meter.energy_j is None
        assert meter.taken() == {}


class FakeError(Exception):
    pass


def fail(*_: object) -> int:
    raise FakeError


def fake_nvml(joules: list[float]) -> ModuleType:
    """NVML with one GPU, which has used the last of `joules`, and computes 40 % of the time."""
    nvml = ModuleType("pynvml")
    vars(nvml).update(
        NVMLError=FakeError,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID={"GPU-12-34": "handle"}.__getitem__,
        nvmlDeviceGetTotalEnergyConsumption=lambda _: round(1000 * joules[-1]),
        nvmlDeviceGetUtilizationRates=lambda _: SimpleNamespace(gpu=40, memory=5),
    )
    return nvml


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[ModuleType | None], torch.device]:
    def use(nvml: ModuleType | None) -> torch.device:
        monkeypatch.setitem(sys.modules, "pynvml", nvml)
        properties = SimpleNamespace(uuid="12-34")
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda _: None)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda _: None)
        monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda _: 1 << 30)
        monkeypatch.setattr(energy, "_LOOK_S", 0.01)
        return torch.device("cuda")

    return use


def test_a_gpu_is_read_through_nvml(on_gpu: Callable[[ModuleType], torch.device]) -> None:
    joules = [5.0]
    with Meter(on_gpu(fake_nvml(joules))) as meter:
        joules.append(7.25)
        time.sleep(0.05)
    assert meter.energy_j == pytest.approx(2.25)
    assert meter.gpu_utilisation == pytest.approx(0.4)
    assert meter.gpu_memory_bytes == 1 << 30


def test_a_gpu_without_a_counter_or_without_nvml(
    on_gpu: Callable[[ModuleType | None], torch.device], monkeypatch: pytest.MonkeyPatch
) -> None:
    nvml = fake_nvml([0])
    monkeypatch.setattr(nvml, "nvmlDeviceGetTotalEnergyConsumption", fail)
    with Meter(on_gpu(nvml)) as old:
        time.sleep(0.05)
    assert old.taken() == {"gpu_memory_bytes": 1 << 30, "gpu_utilisation": pytest.approx(0.4)}
    monkeypatch.setattr(nvml, "nvmlDeviceGetHandleByUUID", fail)
    for missing in (None, nvml):
        with Meter(on_gpu(missing)) as meter:
            pass
        assert meter.taken() == {"gpu_memory_bytes": 1 << 30}


@pytest.mark.gpu
def test_a_real_gpu() -> None:
    pytest.importorskip("pynvml", reason="needs nvidia-ml-py (extra energy)")
    with Meter(torch.device("cuda")) as meter:
        a = torch.rand(4096, 4096, device="cuda")
        began = time.monotonic()
        while time.monotonic() - began < 2:
            a = (a @ a).clamp(0, 1)
            torch.cuda.synchronize()
    taken = meter.taken()
    # Between 1 and 2,000 W for two seconds.
    assert 2 < taken["energy_j"] < 4000
    assert 0 < taken["gpu_utilisation"] <= 1
    assert taken["gpu_memory_bytes"] >= 2 * a.nbytes
