"""Whether a machine, or every node of a cluster, can do what a run will ask of it."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urlsplit

from fedvsr.cluster import probe
from fedvsr.cluster.nodes import NodeReport, ask_nodes, needed, shown
from fedvsr.config import ExperimentConfig
from fedvsr.federation.config import GPU_LABEL

# Of `ray start --head`: control store, dashboard and jobs, Ray client.
PORTS = {6379: "--port", 8265: "--dashboard-port", 10001: "--ray-client-server-port"}
MIN_MEMORY_BYTES = 2 << 30
MIN_SHM_BYTES = 1 << 30
MIN_DISK_BYTES = 5 << 30
# Ray stops writing to a disk that is fuller (RAY_local_fs_capacity_threshold).
MAX_DISK_USED = 0.95

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """A line of the table."""

    check: str
    where: str
    level: Level
    found: str
    todo: str = ""


def judge(reports: Sequence[NodeReport], paths: Sequence[str] = ()) -> list[Finding]:
    """What is right and wrong on these nodes; good lines of several nodes are one line."""
    findings = [
        Finding("node", r.host, "error", r.silent, "look at it, or take it out of the cluster")
        for r in reports
        if r.silent
    ]
    seen = [r for r in reports if not r.silent]
    checks = (_gpus, _labels, _memory, _shared_memory, _disk, _connections)
    if seen:
        findings += _versions(seen)
        for check in checks:
            findings += _folded([finding for r in seen if (finding := check(r))])
        findings += _folded([f for r in seen for f in _paths(r, paths)]) if paths else []
    return findings


def look_here(config: ExperimentConfig | None) -> list[Finding]:
    """Judge this machine by itself; no Ray is started."""
    paths = [path for group in (config.files() if config else {}).values() for path in group]
    report = NodeReport(**probe.probe(paths))
    return judge([report], paths) + [_port(port) for port in PORTS]


def look_around(config: ExperimentConfig | None) -> list[Finding]:
    """Judge every node of the cluster that this process is connected to."""
    with needed(config) as (everywhere, here):
        reports = ask_nodes(everywhere, use_gpus=True)
        findings = judge(reports, everywhere)
        alone = NodeReport(**probe.probe(here))
    findings += _folded(_paths(alone, here)) if here else []
    return [*findings, *_dashboard()]


def _versions(reports: Sequence[NodeReport]) -> Iterable[Finding]:
    wanted = reports[0].versions
    for name, version in wanted.items():
        others = [r for r in reports if r.versions.get(name) != version or version is None]
        if not others:
            yield Finding(name, _some([r.host for r in reports]), "ok", str(version))
        for r in others:
            have = r.versions.get(name)
            yield Finding(
                name,
                r.host,
                "error",
                have or "not installed",
                f"install {version} there, as on {reports[0].host}"
                if version
                else f"install {name}",
            )


def _gpus(r: NodeReport) -> Finding:
    broken = [f"GPU {i}: {gpu['error']}" for i, gpu in enumerate(r.gpus) if gpu["error"]]
    names = [str(gpu["name"]) for gpu in r.gpus]
    counted = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    smallest = min((int(gpu["bytes"]) for gpu in r.gpus), default=0)
    what = f"{', '.join(counted)}, {_gib(smallest)}, CUDA works" if counted else "none"
    if broken:
        return Finding("GPU", r.host, "error", "; ".join(broken), "see nvidia-smi there")
    if r.gpu_error:
        offer = f"Ray offers {r.offered_gpus:g}, but " if r.offered_gpus else ""
        todo = "install a build of torch that fits the driver (nvidia-smi), or repair the driver"
        return Finding("GPU", r.host, "error", offer + r.gpu_error, todo)
    if r.object_store_bytes and r.offered_gpus != len(names):
        found = f"Ray offers {r.offered_gpus:g} of {len(names)}: {what}"
        todo = f"start the node with --num-gpus {len(names)}"
        return Finding("GPU", r.host, "warning", found, todo)
    return Finding("GPU", r.host, "ok", what)


def _labels(r: NodeReport) -> Finding | None:
    if not r.offered_gpus:
        return None
    if r.label:
        return Finding("GPU label", r.host, "ok", r.label)
    todo = f"start the node with --labels {GPU_LABEL}=NAME, to choose it by name"
    return Finding("GPU label", r.host, "warning", "none", todo)


def _memory(r: NodeReport) -> Finding:
    level: Level = "ok" if r.memory_bytes >= MIN_MEMORY_BYTES else "error"
    todo = "" if level == "ok" else "free some: a client process takes about 0.5 GiB"
    return Finding("free memory", r.host, level, _gib(r.memory_bytes), todo)


def _shared_memory(r: NodeReport) -> Finding:
    wanted = r.object_store_bytes or MIN_SHM_BYTES
    found = _gib(r.shm_bytes)
    if r.object_store_bytes:
        found += f", Ray's object store has {_gib(r.object_store_bytes)}"
    if r.shm_bytes >= wanted:
        return Finding("/dev/shm", r.host, "ok", found)
    todo = f"give a container --shm-size={-(-wanted >> 30)}g; Ray else keeps objects on disk"
    return Finding("/dev/shm", r.host, "error", found, todo)


def _disk(r: NodeReport) -> Finding:
    full = [
        folder
        for folder, (free, total) in r.disks.items()
        if free < MIN_DISK_BYTES or free < (1 - MAX_DISK_USED) * total
    ]
    found = ", ".join(f"{folder} {_gib(free)}" for folder, (free, _) in r.disks.items())
    if not full:
        return Finding("free disk", r.host, "ok", found)
    todo = f"free {' and '.join(full)}: Ray stops writing at {MAX_DISK_USED:.0%}"
    return Finding("free disk", r.host, "error", found, todo)


def _connections(r: NodeReport) -> Finding | None:
    if not r.unreachable:
        return None if not r.object_store_bytes else Finding("ports", r.host, "ok", "all reached")
    found = "; ".join(f"{peer}: {why}" for peer, why in r.unreachable.items())
    return Finding("ports", r.host, "error", found, "open all ports between the nodes")


def _paths(r: NodeReport, paths: Sequence[str]) -> list[Finding]:
    todo = "put it where every node reads it under the same path"
    return [
        Finding("data", r.host, "error", f"{shown(path)}: {r.unreadable[path]}", todo)
        if path in r.unreadable
        else Finding("data", r.host, "ok", shown(path))
        for path in paths
    ]


def _port(port: int) -> Finding:
    if probe.why_apart("127.0.0.1", port):
        return Finding("port", "this machine", "ok", f"{port} is free")
    todo = f"if that is no Ray of yours, start a head with another {PORTS[port]}"
    return Finding("port", "this machine", "warning", f"{port} is taken", todo)


def _dashboard() -> list[Finding]:
    import ray

    # It is connected, and says where to.
    context = ray.init(ignore_reinit_error=True, log_to_driver=False, logging_level=logging.ERROR)
    url = context.dashboard_url
    if not url:
        return []
    host = urlsplit(f"http://{url}").hostname or ""
    if host in {"127.0.0.1", "localhost", "::1"}:
        return [Finding("dashboard", "head", "ok", f"{url}, loopback alone")]
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return [Finding("dashboard", "head", "ok", f"{url}, asks for a token")]
    todo = "start the head with --dashboard-host=127.0.0.1, or everything with RAY_AUTH_MODE=token"
    return [
        Finding("dashboard", "head", "warning", f"{url}: whoever reaches it can run commands", todo)
    ]


def _folded(findings: Sequence[Finding]) -> list[Finding]:
    """Lines that say the same of several nodes as one."""
    groups = dict[Finding, list[str]]()
    for finding in findings:
        key = dataclasses.replace(finding, where="")
        groups.setdefault(key, []).append(finding.where)
    return [
        dataclasses.replace(
            key, where=", ".join(where) if len(where) < 3 else f"{len(where)} nodes"
        )
        for key, where in groups.items()
    ]


def _some(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) < 3 else f"{len(names)} nodes"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.1f} GiB"
