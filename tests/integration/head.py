"""A Ray head for tests: with its own ports, folder and token, and ended by its process id."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Head:
    """A running head."""

    address: str
    """URL of its job server."""
    port: int
    """Port of its control store."""
    environment: dict[str, str]
    """Environment of a command that connects to it; it holds the token."""
    token: str
    folder: Path

    def fedvsr(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `fedvsr` as a user would, and wait for its end."""
        command = [sys.executable, "-m", "fedvsr", *arguments]
        return subprocess.run(
            command,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )


@contextmanager
def ray_head(token: str = "") -> Iterator[Head]:
    """Start a head on this machine's loopback address, and end it after the test."""
    # It holds sockets, whose paths must be short.
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    plain = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "COLUMNS"}
    plain |= {
        "PYTHONPATH": str(REPOSITORY),
        "PATH": f"{Path(sys.executable).parent}:{plain['PATH']}",
        "OMP_WAIT_POLICY": "PASSIVE",
        "RAY_USAGE_STATS_ENABLED": "0",
        "HOME": str(folder),
    }
    if token:
        (folder / "token").write_text(token)
        plain |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    control, dashboard, agent, client = free_ports(4)
    command = [
        *(sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block"),
        *("--node-ip-address", "127.0.0.1", "--port", str(control)),
        *("--include-dashboard", "true", "--dashboard-host", "127.0.0.1"),
        *("--dashboard-port", str(dashboard), "--dashboard-agent-listen-port", str(agent)),
        *("--ray-client-server-port", str(client), "--temp-dir", str(folder / "r")),
        *("--num-cpus", "2", "--object-store-memory", str(150 << 20), "--disable-usage-stats"),
    ]
    log = (folder / "head.log").open("w")
    # Only the tests' commands need the source on the path; a job brings its own.
    started = {k: v for k, v in plain.items() if k != "PYTHONPATH"}
    process = subprocess.Popen(
        command, env=started | {"RAY_worker_niceness": "0"}, stdout=log, stderr=log, cwd=folder
    )
    address = f"http://127.0.0.1:{dashboard}"
    try:
        wait_for(address, process, token)
        yield Head(address, control, plain, token, folder)
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
        log.close()
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def node_without(head: Head, folder: Path) -> Iterator[None]:
    """Add a node on this machine to the head's cluster; it sees nothing in `folder`.

    The node has its own mount namespace; `can_hide_folders` says whether this user may make one.
    """
    ray = f"{sys.executable} -m ray.scripts.scripts start --block --num-cpus 1"
    options = f"--object-store-memory {100 << 20} --dashboard-agent-listen-port 0"
    where = f"--address 127.0.0.1:{head.port} --node-ip-address 127.0.0.1"
    inside = f"mount -t tmpfs none {folder} && exec {ray} {options} {where}"
    log = (head.folder / "node.log").open("w")
    process = subprocess.Popen(
        [*HIDING, inside],
        env={k: v for k, v in head.environment.items() if k != "PYTHONPATH"},
        stdout=log,
        stderr=log,
        cwd=head.folder,
    )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in (head.folder / "node.log").read_text():
            assert process.poll() is None, "the node ended while it started"
            assert time.monotonic() < deadline, "the node does not start"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(30)
        log.close()


HIDING = ["unshare", "--mount", "sh", "-c"]


def can_hide_folders() -> bool:
    """Whether this user may mount a folder in a new namespace."""
    try:
        done = subprocess.run([*HIDING, "mount -t tmpfs none /mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0


def free_ports(count: int) -> list[int]:
    """Ports that were free a moment ago."""
    sockets = [socket.socket() for _ in range(count)]
    for opened in sockets:
        opened.bind(("127.0.0.1", 0))
    ports = [int(opened.getsockname()[1]) for opened in sockets]
    for opened in sockets:
        opened.close()
    return ports


def wait_for(address: str, process: subprocess.Popen[bytes], token: str) -> None:
    """Wait until the job server answers."""
    request = urllib.request.Request(
        f"{address}/api/version", headers={"Authorization": f"Bearer {token}"} if token else {}
    )
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, "the head ended while it started"
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    raise AssertionError("the head does not answer")
