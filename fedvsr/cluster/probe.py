"""What one machine is like, seen from inside a process there.

It is sent to nodes that may lack this program, so it is one module that imports the standard
library alone (torch only to use a GPU), and what it gives back is plain values.
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
from typing import Any

# A port that a firewall drops packets for answers never.
_CONNECT_S = 5
_CGROUP_FILES = ("memory.max", "memory.current")


def probe(
    paths: Sequence[str], peers: Sequence[tuple[str, int]] = (), use_gpus: bool = False
) -> dict[str, Any]:
    """Look at this machine.

    Args:
        paths: files and folders to read.
        peers: hosts and ports to connect to.
        use_gpus: multiply a small matrix on each GPU, also where no GPU is to be seen.

    Returns:
        The values of `fedvsr.cluster.doctor.NodeReport` that only this machine knows.
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
            f"{host}:{port}": reason for host, port in peers if (reason := why_apart(host, port))
        },
    }


def _versions() -> dict[str, str | None]:
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in ("ray", "torch", "torchvision"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    try:
        fedvsr = importlib.import_module("fedvsr")
    except ImportError:
        found["fedvsr"] = None
    else:
        # A version number stays the same while the source that is installed changes.
        digest = hashlib.sha256()
        folder = Path(str(fedvsr.__file__)).parent
        for file in sorted(folder.rglob("*.py")):
            digest.update(str(file.relative_to(folder)).encode() + file.read_bytes())
        found["fedvsr"] = f"{fedvsr.__version__} (source {digest.hexdigest()[:8]})"
    return found


def _gpus() -> tuple[list[dict[str, Any]], str]:
    """Name, bytes and error of each GPU, and why there are none."""
    try:
        import torch
    except Exception as error:
        return [], f"torch does not import: {error}".splitlines()[0]
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "built for CPUs"
        return [], f"torch {torch.__version__}, {built}, sees no GPU"
    found = []
    for index in range(torch.cuda.device_count()):
        properties, problem = torch.cuda.get_device_properties(index), ""
        try:
            ones = torch.ones(256, 256, device=f"cuda:{index}")
            if float((ones @ ones)[0, 0]) != 256:
                problem = "computes wrongly"
        except Exception as error:
            problem = str(error).splitlines()[0]
        found.append({"name": properties.name, "bytes": properties.total_memory, "error": problem})
    return found, ""


def _available_bytes() -> int:
    rooms = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    ]
    # A container's own limit; the kernel shows it as the root of its groups.
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = ((group / name).read_text().strip() for name in _CGROUP_FILES)
        rooms += [int(limit) - int(used)] if limit != "max" else []
    except OSError:
        pass
    return min(rooms, default=0)


def _disks() -> dict[str, tuple[int, int]]:
    """Free and all bytes of where Ray spills to and of the home folder, a file system once."""
    found, seen = {}, set()
    for folder in (os.environ.get("RAY_TMPDIR") or tempfile.gettempdir(), str(Path.home())):
        if os.path.isdir(folder) and (device := os.stat(folder).st_dev) not in seen:
            seen.add(device)
            usage = shutil.disk_usage(folder)
            found[folder] = (usage.free, usage.total)
    return found


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


def why_apart(host: str, port: int) -> str:
    """Why nothing answers there; empty if something does."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_S).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""
