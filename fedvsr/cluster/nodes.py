"""Asks the nodes of the connected cluster what they have, and whether they read a run's data."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvsr.cluster import probe
from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import default_cache_dir
from fedvsr.data.config import DataConfig, OwnerConfig
from fedvsr.data.owned import Dealt, deal_own
from fedvsr.data.owners import Labels, has_labels, shown
from fedvsr.errors import UserError
from fedvsr.federation.config import GPU_LABEL
from fedvsr.plugins import Plugin

_ANSWER_S = 120
# To read an owner's stores; some partitions read frames of every clip.
_DEAL_S = 600


@dataclass(frozen=True)
class NodeReport:
    """What one node has. Of several, the first is the node that this command runs on."""

    host: str
    versions: Mapping[str, str | None]
    """Versions of Python and of packages; None for a package that is missing."""
    gpus: Sequence[probe.Gpu] = ()
    """The GPUs that torch sees."""
    gpu_error: str = ""
    """Why torch sees no GPU, if it should."""
    memory_bytes: int = 0
    """Available memory."""
    shm_bytes: int = 0
    """Size of /dev/shm."""
    disks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Free and total bytes by folder."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Paths that the node cannot read, and why."""
    unreachable: Mapping[str, str] = field(default_factory=dict)
    """`host:port` of other nodes that it cannot connect to, and why."""
    offered_gpus: float = 0
    """GPUs that the node offers to Ray."""
    label: str = ""
    """Its accelerator type, by which runs choose nodes."""
    labels: Labels = field(default_factory=dict)
    """All its labels; none without Ray."""
    object_store_bytes: int = 0
    """Shared memory in which Ray keeps objects; 0 without Ray."""
    silent: str = ""
    """Why the node did not answer; all other values are then unknown."""


@dataclass(frozen=True)
class DataPaths:
    """The paths that a run reads, each with the name by which people know it."""

    everywhere: Mapping[str, str]
    """Read by every node."""
    here: Mapping[str, str]
    """Read only by the node that starts the run: videos, which it cuts into the cache."""
    owners: Mapping[str, OwnerConfig] = field(default_factory=dict)
    """Those whose stores are read by their nodes alone."""

    def of_owner(self, name: str) -> dict[str, str]:
        """The paths that an owner's nodes read: the manifests of its stores."""
        stores = self.owners[name].train
        return {f"{store}/manifest.json": f"{store} (data.owners.{name})" for store in stores}

    def owned(self, labels: Labels) -> dict[str, str]:
        """The paths that a node with these labels reads because it is an owner's."""
        paths = dict[str, str]()
        for name, owner in self.owners.items():
            paths |= self.of_owner(name) if has_labels(labels, owner.nodes) else {}
        return paths


def require_readable(config: ExperimentConfig) -> None:
    """Check that the other nodes of the connected cluster can read what this run's clients read.

    Raises:
        UserError: a node cannot.
    """
    with data_paths(config) as paths:
        everywhere = paths.everywhere
        asks = everywhere or paths.owners
        reports = ask_nodes(everywhere, others_only=True, owned=paths.owned) if asks else []
    problems = [f"{r.host} {r.silent}" for r in reports if r.silent]
    problems += [
        f"{r.host} cannot read {name}: {r.unreadable[path]}"
        for r in reports
        for path, name in {**everywhere, **paths.owned(r.labels)}.items()
        if path in r.unreadable
    ]
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        but = " (an owner's: each of the owner's nodes)" if paths.owners else ""
        raise UserError(
            f"node {problems[0]}{more}; put the data where every node{but} reads it under the same "
            "path; `fedvsr doctor` checks every node"
        )


def require_plugins(config: ExperimentConfig) -> None:
    """Check that the nodes of the connected cluster have the modules that are plug-ins.

    Files of plug-ins need no check, because they travel.

    Raises:
        UserError: a node lacks one, or has another version of it.
    """
    from fedvsr.federation.calls import Call, answers
    from fedvsr.federation.executors import first_line
    from fedvsr.federation.placement import alive_nodes

    installed = tuple(plugin for plugin in config.plugins() if plugin.source is None)
    if not installed:
        return
    nodes = [node for node in alive_nodes().values() if node["Resources"].get("CPU")]
    calls = [Call(node["NodeID"], _why_missing, (installed,)) for node in nodes]
    reasons = answers(calls, _ANSWER_S)
    if missing := [reason for reason in reasons if isinstance(reason, str)]:
        raise UserError(missing[0])
    for node, reason in zip(nodes, reasons, strict=True):
        if isinstance(reason, Exception):
            raise UserError(
                f"node {node['NodeManagerHostname']} did not say whether it has "
                f"{installed[0].reference}: {first_line(reason)}; `fedvsr doctor` checks every node"
            )


def _why_missing(plugins: Sequence[Plugin]) -> str | None:
    """Why a process on this node cannot use these plug-ins; None if it can."""
    try:
        for plugin in plugins:
            plugin.module()
    except UserError as error:
        return str(error)
    return None


def deal_on_nodes(config: DataConfig, seed: int, tests: Collection[str]) -> dict[str, Dealt]:
    """Let a node of each owner read the owner's stores and deal their clips.

    Args:
        config: the `data` section.
        seed: the experiment's.
        tests: keys of the test clips.

    Raises:
        UserError: an owner has no node, its node does not answer, or see `deal_own`.
    """
    from fedvsr.federation.calls import Call, answers
    from fedvsr.federation.placement import alive_nodes

    nodes = sorted(alive_nodes().values(), key=lambda node: str(node["NodeID"]))
    # Other owners' paths are none of an owner's business.
    how = config.model_copy(update={"owners": {}, "test": []})
    calls = []
    for name, owner in config.owners.items():
        own = [node["NodeID"] for node in nodes if has_labels(node["Labels"], owner.nodes)]
        if not own:
            raise UserError(no_node(name, owner))
        calls.append(Call(own[0], deal_own, (name, owner, how, seed, tests)))
    dealt = answers(calls, _DEAL_S)
    return {name: _dealt(name, each) for name, each in zip(config.owners, dealt, strict=True)}


def no_node(name: str, owner: OwnerConfig) -> str:
    """What is wrong if no node of the cluster is an owner's, and what to do."""
    labels = shown(owner.nodes)
    return (
        f"no node of this Ray cluster has the labels of owner {name} ({labels}); start one with "
        f"`ray start --labels {labels}`, or correct data.owners.{name}.nodes"
    )


def _dealt(name: str, answer: Dealt | Exception) -> Dealt:
    if not isinstance(answer, Exception):
        return answer
    if isinstance(answer, UserError):
        raise answer from None
    first = (str(answer).splitlines() or [""])[0]
    raise UserError(f"the node of owner {name} could not read the owner's stores: {first}")


def ask_nodes(
    paths: Iterable[str],
    use_gpus: bool = False,
    others_only: bool = False,
    owned: Callable[[Labels], Iterable[str]] = lambda _: (),
) -> list[NodeReport]:
    """Run `probe` on the connected cluster's nodes, all at once; this node comes first.

    Args:
        paths: files and folders that each node tries to read.
        use_gpus: also try the GPUs that a node offers.
        others_only: leave out this node, unless it is an owner's, and nodes that offer no CPU and
            so run no client.
        owned: gives more paths for the nodes of owners, by their labels.
    """
    import ray

    from fedvsr.federation.calls import Call, answers
    from fedvsr.federation.placement import alive_nodes

    # Nodes may have another version of fedvsr, or none.
    ray.cloudpickle.register_pickle_by_value(probe)  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    nodes = sorted(alive_nodes().values(), key=lambda n: n["NodeID"] != here)
    if others_only:
        trains = [n for n in nodes if n["Resources"].get("CPU")]
        nodes = [n for n in trains if n["NodeID"] != here or owned(n["Labels"])]
    calls = []
    for node in nodes:
        peers = [
            (other["NodeManagerAddress"], other[port])
            for other in nodes
            for port in ("NodeManagerPort", "ObjectManagerPort")
            if other is not node and not others_only
        ]
        gpus = use_gpus and node["Resources"].get("GPU", 0) > 0
        # A GPU that a run holds is tried too.
        arguments = ([*paths, *owned(node["Labels"])], peers, gpus)
        calls.append(Call(node["NodeID"], probe.probe, arguments))
    machines = answers(calls, _ANSWER_S)
    return [_report(node, machine) for node, machine in zip(nodes, machines, strict=True)]


def _report(node: Mapping[str, Any], machine: probe.Machine | Exception) -> NodeReport:
    resources = node["Resources"]
    by_ray: dict[str, Any] = {
        "offered_gpus": resources.get("GPU", 0),
        "label": node.get("Labels", {}).get(GPU_LABEL, ""),
        "labels": node.get("Labels", {}),
        "object_store_bytes": int(resources.get("object_store_memory", 0)),
    }
    host = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    if isinstance(machine, TimeoutError):
        return NodeReport(host, {}, silent=f"did not answer within {_ANSWER_S} s", **by_ray)
    if isinstance(machine, Exception):
        problem = (str(machine).splitlines() or [type(machine).__name__])[0]
        return NodeReport(host, {}, silent=problem, **by_ray)
    return NodeReport(**{**machine, **by_ray, "host": host})


@contextmanager
def data_paths(config: ExperimentConfig | None) -> Iterator[DataPaths]:
    """The paths that a run reads; those of no configuration are none.

    This node cuts videos, and folders of them, into the cache, which every node then reads. While
    the context lasts, a new file lies in the cache: a node that reads it shares the cache.

    Raises:
        UserError: the cache cannot be written.
    """
    if config is None:
        yield DataPaths({}, {})
        return
    files = config.files()
    weights = ("model.weights", "model.flow_weights", "evaluation.metric_weights")
    everywhere = [path for key in weights for path in files.get(key, [])]
    here = files.get("data.videos", [])
    for folder in (p for key in ("data.train", "data.test") for p in files.get(key, [])):
        prepared = (Path(folder).expanduser() / "manifest.json").is_file()
        missing = not Path(folder).expanduser().is_dir()
        (everywhere if prepared or missing else here).append(folder)
    names = {path: path for path in everywhere}
    if not here:
        yield DataPaths(names, {}, config.data.owners)
        return
    cache = Path(config.data.cache_dir or default_cache_dir()).expanduser()
    mark = (cache / f".seen-by-all-{uuid.uuid4().hex[:8]}").absolute()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(f"data.cache_dir: cannot write to {cache}: {error.strerror}") from None
    try:
        names[str(mark)] = f"data.cache_dir ({mark.parent})"
        yield DataPaths(names, {path: path for path in here}, config.data.owners)
    finally:
        mark.unlink(missing_ok=True)
