"""Describes one machine, from inside a process on it.

Ray sends this module to nodes that may not have fedvsr installed. So it imports only the standard
library (and torch to use a GPU), and returns plain values.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TypedDict

# A port whose packets a firewall drops never answers.
_CONNECT_S = 5
_CGROUP_FILES = ("memory.max", "memory.current")


class Gpu(TypedDict):
    """A GPU that torch sees."""

    name: str
    bytes: int
    error: str
    """Why it cannot be used; empty if it works."""


class Machine(TypedDict):
    """The values of `fedvsr.cluster.nodes.NodeReport` that only the machine itself knows."""

    host: str
    versions: dict[str, str | None]
    gpus: list[Gpu]
    gpu_error: str
    memory_bytes: int
    shm_bytes: int
    disks: dict[str, tuple[int, int]]
    unreadable: dict[str, str]
    unreachable: dict[str, str]


def probe(
    paths: Sequence[str], peers: Sequence[tuple[str, int]] = (), use_gpus: bool = False
) -> Machine:
    """Describe this machine.

    Args:
        paths: files and folders to read.
        peers: hosts and ports to connect to.
        use_gpus: multiply a small matrix on each GPU, and report it if torch sees no GPU.
    """
    shm = shutil.disk_usage("/dev/shm") if os.path.isdir("/dev/shm") else None
    gpus, gpu_error = _gpus() if use_gpus or os.path.exists("/dev/nvidiactl") else ([], "")
    return {
        "host": socket.gethostname(),
        "versions": _versions(),
        "gpus": gpus,
        "gpu_error": gpu_error,
        "memory_bytes": _available_bytes(),
        "shm_bytes": shm.total if shm else 0,
        "disks": _disks(),
        "unreadable": {p: reason for p in paths if (reason := _why_unreadable(p))},
        "unreachable": {
            f"{host}:{port}": reason
            for host, port in peers
            if (reason := why_unreachable(host, port))
        },
    }


def _versions() -> dict[str, str | None]:
    versions: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("ray", "torch", "torchvision"):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    try:
        fedvsr = importlib.import_module("fedvsr")
    except ImportError:
        versions["fedvsr"] = None
    else:
        # The version number does not change with every edit of the source.
        digest = hashlib.sha256()
        folder = Path(str(fedvsr.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
        versions["fedvsr"] = f"{fedvsr.__version__} (source {digest.hexdigest()[:8]})"
    return versions


def _gpus() -> tuple[list[Gpu], str]:
    """The GPUs that torch sees, and why it sees none."""
    try:
        import torch
    except Exception as error:
        # A broken installation raises more than ImportError, such as OSError for a library.
        return [], f"torch does not import: {error}".splitlines()[0]
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        return [], f"torch {torch.__version__}, {built}, sees no GPU"
    gpus: list[Gpu] = []
    for index in range(torch.cuda.device_count()):
        properties, problem = torch.cuda.get_device_properties(index), ""
        try:
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            if float((ones @ ones)[0, 0]) != 256:
                problem = "computes a wrong product"
        except Exception as error:
            # Whatever the driver raises is what is to be reported.
            problem = (str(error).splitlines() or [type(error).__name__])[0]
        gpus.append({"name": properties.name, "bytes": properties.total_memory, "error": problem})
    return gpus, ""


def _available_bytes() -> int:
    limits = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    ]
    # The limit of a container, whose own control group the kernel shows as the root.
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in _CGROUP_FILES)
        limits += [int(limit) - int(used)] if limit != "max" else []
    except OSError:
        pass
    return min(limits, default=0)


def _disks() -> dict[str, tuple[int, int]]:
    """Free and total bytes of where Ray spills and of the home folder, once per file system."""
    disks, devices = {}, set()
    for folder in (os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), str(Path.home())):
        if os.path.isdir(folder) and (device := os.stat(folder).st_dev) not in devices:
            devices.add(device)
            usage = shutil.disk_usage(folder)
            disks[folder] = (usage.free, usage.total)
    return disks


def _why_unreadable(name: str) -> str:
    if name.startswith("package:"):
        package, _, inside = name[len("package:") :].partition("/")
        spec = importlib.util.find_spec(package)
        if spec is None or not spec.submodule_search_locations:
            return f"the Python package {package} is not installed"
        path = Path(spec.submodule_search_locations[0]) / inside
    else:
        path = Path(name).expanduser()
    try:
        if path.is_dir():
            next(path.iterdir(), None)
        else:
            with path.open("rb") as file:
                file.read(1)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def why_unreachable(host: str, port: int) -> str:
    """Why nothing answers at a port; empty if something does."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
