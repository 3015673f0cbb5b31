"""What a run was made with: versions, source commit, device."""

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


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
