"""Checks that a machine, or every node of a cluster, can run an experiment."""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import urlsplit

from rich.filesize import decimal

from fedvsr.cluster import probe
from fedvsr.cluster.nodes import DataPaths, NodeReport, ask_nodes, data_paths, no_node
from fedvsr.config import ExperimentConfig
from fedvsr.data.owners import has_labels
from fedvsr.federation.config import GPU_LABEL

# Default ports of `ray start --head`, with the option of each.
PORTS = {6379: "--port", 8265: "--dashboard-port", 10001: "--ray-client-server-port"}
MIN_MEMORY_BYTES = 2 << 30
MIN_SHM_BYTES = 1 << 30
MIN_DISK_BYTES = 5 << 30
# Ray stops writing to a fuller disk (RAY_local_fs_capacity_threshold).
MAX_DISK_USED = 0.95

Level = Literal["ok", "warning", "error"]


@dataclass(frozen=True)
class Finding:
    """One line of the table: the result of a check."""

    check: str
    where: str
    level: Level
    found: str
    todo: str = ""


def judge(reports: Sequence[NodeReport], paths: Mapping[str, str] | None = None) -> list[Finding]:
    """What is right and wrong on these nodes; equal results of several nodes share a line.

    Args:
        reports: what the nodes have; versions are compared with the first node's.
        paths: the paths that each node tried to read, with the names to show for them.
    """
    todo = "repair the node, or take it out of the cluster"
    findings = [Finding("node", r.host, "error", r.silent, todo) for r in reports if r.silent]
    answered = [r for r in reports if not r.silent]
    checks = (_gpus, _labels, _memory, _shared_memory, _disk, _connections)
    if answered:
        findings += _versions(answered)
        for check in checks:
            findings += _folded([finding for r in answered if (finding := check(r))])
        if paths:
            findings += _folded([finding for r in answered for finding in _paths(r, paths)])
    return findings


def look_here(config: ExperimentConfig | None) -> list[Finding]:
    """Check this machine alone, without starting Ray."""
    files = config.files() if config else {}
    owned = dict.fromkeys(files.pop("data.owners", []))
    paths = {path: path for group in files.values() for path in group}
    report = NodeReport(**probe.probe([*paths]))
    findings = judge([report], paths)
    if owned:
        todo = "check it there: fedvsr doctor CONFIG --address CLUSTER"
        found = f"not checked here, because it stays with its owners: {', '.join(owned)}"
        findings.append(Finding("data", "this machine", "warning", found, todo))
    return findings + [_port(port) for port in PORTS]


def look_around(config: ExperimentConfig | None) -> list[Finding]:
    """Check every node of the cluster that this process is connected to."""
    with data_paths(config) as paths:
        reports = ask_nodes(paths.everywhere, use_gpus=True, owned=paths.owned)
        findings = judge(reports, paths.everywhere)
        findings += of_owners(reports, paths)
        this_node = NodeReport(**probe.probe([*paths.here]))
    findings += _folded(_paths(this_node, paths.here))
    return [*findings, *_dashboard()]


def of_owners(reports: Sequence[NodeReport], paths: DataPaths) -> list[Finding]:
    """Whether each owner has nodes, and all of them read the owner's stores."""
    findings = list[Finding]()
    for name, owner in paths.owners.items():
        own = [r for r in reports if has_labels(r.labels, owner.nodes)]
        todo = f"put it on every node of owner {name} under this path"
        named = paths.of_owner(name)
        found = [f for r in own if not r.silent for f in _paths(r, named, todo)]
        findings += _folded(found)
        if not own:
            problem, _, todo = no_node(name, owner).partition("; ")
            findings.append(Finding("data", f"owner {name}", "error", problem, todo))
    return findings


def _versions(reports: Sequence[NodeReport]) -> Iterable[Finding]:
    first = reports[0]
    for name, version in first.versions.items():
        wrong = [r for r in reports if r.versions.get(name) != version or version is None]
        if not wrong:
            yield Finding(name, _names([r.host for r in reports]), "ok", str(version))
        todo = f"install {version} there, as on {first.host}" if version else f"install {name}"
        for r in wrong:
            found = r.versions.get(name) or "not installed"
            yield Finding(name, r.host, "error", found, todo)


def _gpus(r: NodeReport) -> Finding:
    broken = [f"GPU {i}: {gpu['error']}" for i, gpu in enumerate(r.gpus) if gpu["error"]]
    names = [str(gpu["name"]) for gpu in r.gpus]
    counted = [f"{names.count(name)} x {name}" for name in dict.fromkeys(names)]
    smallest = min((int(gpu["bytes"]) for gpu in r.gpus), default=0)
    what = f"{', '.join(counted)}, {decimal(smallest)}, CUDA works" if counted else "none"
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
    todo = "" if level == "ok" else "free some memory: a client process takes about 0.5 GB"
    return Finding("free memory", r.host, level, decimal(r.memory_bytes), todo)


def _shared_memory(r: NodeReport) -> Finding:
    wanted = r.object_store_bytes or MIN_SHM_BYTES
    found = decimal(r.shm_bytes)
    if r.object_store_bytes:
        found += f", Ray's object store has {decimal(r.object_store_bytes)}"
    if r.shm_bytes >= wanted:
        return Finding("/dev/shm", r.host, "ok", found)
    todo = f"start a container with --shm-size={-(-wanted >> 30)}g, or Ray keeps objects on disk"
    return Finding("/dev/shm", r.host, "error", found, todo)


def _disk(r: NodeReport) -> Finding:
    full = [
        folder
        for folder, (free, total) in r.disks.items()
        if free < MIN_DISK_BYTES or free < (1 - MAX_DISK_USED) * total
    ]
    found = ", ".join(f"{folder} {decimal(free)}" for folder, (free, _) in r.disks.items())
    if not full:
        return Finding("free disk", r.host, "ok", found)
    todo = f"free {' and '.join(full)}: Ray stops writing at {MAX_DISK_USED:.0%}"
    return Finding("free disk", r.host, "error", found, todo)


def _connections(r: NodeReport) -> Finding | None:
    if not r.unreachable:
        return None if not r.object_store_bytes else Finding("ports", r.host, "ok", "all reached")
    found = "; ".join(f"{peer}: {reason}" for peer, reason in r.unreachable.items())
    return Finding("ports", r.host, "error", found, "open all ports between the nodes")


def _paths(
    r: NodeReport,
    paths: Mapping[str, str],
    todo: str = "put it where every node reads it under the same path",
) -> list[Finding]:
    return [
        Finding("data", r.host, "error", f"{name}: {r.unreadable[path]}", todo)
        if path in r.unreadable
        else Finding("data", r.host, "ok", name)
        for path, name in paths.items()
    ]


def _port(port: int) -> Finding:
    if probe.why_unreachable("127.0.0.1", port):
        return Finding("port", "this machine", "ok", f"{port} is free")
    todo = f"if it is not your own Ray, start a head with another {PORTS[port]}"
    return Finding("port", "this machine", "warning", f"{port} is taken", todo)


def _dashboard() -> list[Finding]:
    import ray

    from fedvsr.federation.placement import asked

    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    # Ray is connected already; this call only returns the context.
    context = asked(lambda: ray.init(ignore_reinit_error=True, **options))
    url = context.dashboard_url
    if not url:
        return []
    host = urlsplit(f"http://{url}").hostname or ""
    if host in {"127.0.0.1", "localhost", "::1"}:
        return [Finding("dashboard", "head", "ok", f"{url}, loopback only")]
    if os.environ.get("RAY_AUTH_MODE") == "token":
        return [Finding("dashboard", "head", "ok", f"{url}, asks for a token")]
    todo = "start the head with --dashboard-host=127.0.0.1, or everything with RAY_AUTH_MODE=token"
    found = f"{url}: anyone who can reach it can run commands"
    return [Finding("dashboard", "head", "warning", found, todo)]


def _folded(findings: Sequence[Finding]) -> list[Finding]:
    """Findings with those of several nodes that differ only in the node merged into one."""
    groups = dict[Finding, list[str]]()
    for finding in findings:
        key = dataclasses.replace(finding, where="")
        groups.setdefault(key, []).append(finding.where)
    return [dataclasses.replace(finding, where=_names(hosts)) for finding, hosts in groups.items()]


def _names(hosts: Sequence[str]) -> str:
    return ", ".join(hosts) if len(hosts) < 3 else f"{len(hosts)} nodes"
