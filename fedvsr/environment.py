"""The machine and the software that a run uses: free memory, versions, source commit."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

# OpenMP threads that spin while they wait take processors from other processes; on a busy machine
# they made small matrix products a hundred times slower. torch reads these when it is loaded.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
PACKAGES = ("torch", "torchvision", "ray", "numpy")
# The commit of source that was sent to a cluster, where it has no git history.
COMMIT_FILE = "COMMIT"
_CGROUPS = Path("/sys/fs/cgroup")


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of this source tree, with `-dirty` if it was changed; None for an installed wheel."""
    root = Path(__file__).resolve().parent.parent
    recorded = root / "fedvsr" / COMMIT_FILE
    if recorded.is_file():
        return recorded.read_text().strip()
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return process.stdout.strip() or None


def let_threads_sleep() -> None:
    """Set `SLEEPING_THREADS`, unless the user has set them. Call it before torch is imported."""
    for name, value in SLEEPING_THREADS.items():
        os.environ.setdefault(name, value)


def available_bytes() -> int:
    """Host memory that this process may still take: the system's, or less if its cgroup is limited.

    The function needs only the standard library, so that it can be sent to a machine without
    fedvsr. It returns 0 if the system does not tell.
    """
    free = [
        int(line.split()[1]) * 1024
        for line in Path("/proc/meminfo").read_text().splitlines()
        if line.startswith("MemAvailable")
    ]
    for group in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = group.split(":", 2)
        if controllers in {"", "memory"}:
            free += _cgroup_free(controllers, path)
    return max(0, min(free, default=0))


def _cgroup_free(controllers: str, path: str) -> list[int]:
    """Bytes that a memory cgroup and those above it leave; a container sees its own as the root."""
    version = "memory.max", "memory.current"
    root = _CGROUPS
    if controllers:
        version = "memory.limit_in_bytes", "memory.usage_in_bytes"
        root /= "memory"
    inside = Path(path.lstrip("/"))
    free = []
    for folder in (root / inside, *(root / parent for parent in inside.parents)):
        try:
            limit, used = ((folder / name).read_text().strip() for name in version)
        except OSError:
            continue
        if limit != "max":
            free.append(int(limit) - int(used))
    return free


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
