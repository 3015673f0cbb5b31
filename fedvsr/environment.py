"""What a run was made with: versions, source commit, device."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

# OpenMP threads that spin while they wait starve the rest of the machine; on a busy one they
# made small matrix products a hundred times slower. Read when torch is loaded.
SLEEPING_THREADS = {"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "0"}
PACKAGES = ("torch", "torchvision", "ray", "numpy")
# Beside the source that was shipped to a cluster, which has no history there.
COMMIT_FILE = "COMMIT"


@lru_cache(maxsize=1)
def git_commit() -> str | None:
    """Commit of the source tree that runs, with `-dirty` if it was changed; None for a wheel."""
    here = Path(__file__).resolve().parent.parent
    shipped = here / "fedvsr" / COMMIT_FILE
    if shipped.is_file():
        return shipped.read_text().strip()
    if not (here / ".git").exists():
        return None
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None


def let_threads_sleep() -> None:
    """Set `SLEEPING_THREADS` for this process, unless the user has; call it before torch loads."""
    for name, value in SLEEPING_THREADS.items():
        os.environ.setdefault(name, value)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}
