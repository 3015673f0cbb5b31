"""A Ray head for tests, as `fedvsr cluster up` starts it: with its own ports, folder and token."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
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
    """Environment of a command that connects to it; it names the file of its token."""
    bare_environment: dict[str, str]
    """Environment of a user who has set nothing."""
    token: str
    folder: Path
    """The user's home."""
    ray_folder: Path

    def fedvsr(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `fedvsr` as a user would, and wait for its end.

        Args:
            arguments: of the command.
            environment: variables besides those of `environment`; without `--address` and without
                any, the command has to find the head by itself.
        """
        command = [sys.executable, "-m", "fedvsr", *arguments]
        by_itself = "--address" not in arguments and not environment
        given = self.bare_environment if by_itself else self.environment
        return subprocess.run(
            command,
            env={**given, **environment},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=self.folder,
        )


@contextmanager
def local_head() -> Iterator[Head]:
    """Start a head by `fedvsr cluster up`, and end it by `down` after the test."""
    folder = Path(tempfile.mkdtemp(prefix="fh-"))
    own = ("RAY_", "COLUMNS", "PYTHONPATH")
    plain = {k: v for k, v in os.environ.items() if not k.startswith(own)}
    plain |= {"OMP_WAIT_POLICY": "PASSIVE", "HOME": str(folder)}
    command = [sys.executable, "-m", "fedvsr", "cluster"]
    # Only the tests' commands need the source on the path; a job brings its own.
    how = {"env": plain, "capture_output": True, "text": True, "timeout": 120, "cwd": REPOSITORY}
    try:
        started = subprocess.run([*command, "up", "--num-cpus", "2"], **how)  # type: ignore[call-overload]
        assert started.returncode == 0, started.stdout + started.stderr
        state = json.loads((folder / ".fedvsr" / "cluster" / "head.json").read_text())
        exported = re.search(r"^export (.*)$", started.stdout, re.MULTILINE)
        assert exported
        variables = dict(word.split("=", 1) for word in shlex.split(exported[1]))
        port = int(variables.pop("RAY_ADDRESS").rpartition(":")[2])
        bare = plain | {"PYTHONPATH": str(REPOSITORY)}
        variables["PATH"] = f"{Path(sys.executable).parent}:{plain['PATH']}"
        yield Head(
            address=state["address"],
            port=port,
            environment=bare | variables,
            bare_environment=bare,
            token=Path(variables["RAY_AUTH_TOKEN_PATH"]).read_text(),
            folder=folder,
            ray_folder=Path(state["ray_folder"]),
        )
        ended = subprocess.run([*command, "down"], **how)  # type: ignore[call-overload]
        assert ended.returncode == 0, ended.stdout + ended.stderr
        left = [entry["pid"] for entry in state["processes"] if is_alive(entry["pid"])]
        assert left == [], "processes of the head"
        assert not Path(state["ray_folder"]).exists()
    finally:
        subprocess.run([*command, "down"], **how)  # type: ignore[call-overload]
        shutil.rmtree(folder, ignore_errors=True)


def is_alive(pid: int) -> bool:
    """Whether a process runs, and is none that only waits to be noticed."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@contextmanager
def node_without(head: Head, folder: Path) -> Iterator[None]:
    """Add a node on this machine to the head's cluster; it sees nothing in `folder`.

    Like a node on a machine of its own it has its own folder for the jobs' packages: Ray's agent
    unpacks a job's package on every node as the job starts, and two nodes with one folder would
    replace the files that the job is about to import.
    """
    environment = {k: v for k, v in head.environment.items() if k != "PYTHONPATH"}
    address = f"127.0.0.1:{head.port}"
    packages = (head.ray_folder / "session_latest" / "runtime_resources").resolve(strict=True)
    mounts = " && ".join(f"mount -t tmpfs none {hidden}" for hidden in (folder, packages))
    with node_with(mounts, address, environment, head.folder):
        yield


@contextmanager
def node_with(
    mount: str, address: str, environment: dict[str, str], folder: Path, *options: str
) -> Iterator[subprocess.Popen[bytes]]:
    """Add a node on this machine to a cluster; gives the process that holds it.

    The node has its own mount namespace; `can_hide_folders` says whether this user may make one.

    Args:
        mount: a command that mounts something there.
        address: of the cluster.
        environment: of the node's processes.
        folder: the folder of its log, in which its processes start.
        options: more options of `ray start`.
    """
    ray = f"{sys.executable} -m ray.scripts.scripts start --block --num-cpus 1"
    own = f"--object-store-memory {100 << 20} --dashboard-agent-listen-port 0"
    where = f"--address {address} --node-ip-address {address.rpartition(':')[0]}"
    inside = f"{mount} && exec {ray} {own} {where} {shlex.join(options)}"
    with (folder / "node.log").open("w") as log:
        process = subprocess.Popen(
            [*HIDING, inside], env=environment, stdout=log, stderr=log, cwd=folder
        )
        try:
            deadline = time.monotonic() + 60
            while "Ray runtime started" not in (folder / "node.log").read_text():
                assert process.poll() is None, "the node ended while it started"
                assert time.monotonic() < deadline, "the node does not start"
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            process.wait(30)


HIDING = ["unshare", "--mount", "sh", "-c"]


def can_hide_folders() -> bool:
    """Whether this user may mount a folder in a new namespace."""
    try:
        done = subprocess.run([*HIDING, "mount -t tmpfs none /mnt"], capture_output=True)
    except OSError:
        return False
    return done.returncode == 0
