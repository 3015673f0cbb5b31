"""What the nodes of the connected cluster are like, and whether they read a run's data."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedvsr.cluster import probe
from fedvsr.config import ExperimentConfig
from fedvsr.data.clips import default_cache_dir
from fedvsr.errors import UserError
from fedvsr.federation.config import GPU_LABEL

_ANSWER_S = 120
# Begins the name of a file that shows whether nodes share a folder.
_MARK = ".seen-by-all-"


@dataclass(frozen=True)
class NodeReport:
    """What one node is like. The first of several is the one that this command runs on."""

    host: str
    versions: Mapping[str, str | None]
    """Of Python and packages; None where one is missing."""
    gpus: Sequence[Mapping[str, Any]] = ()
    """`name`, `bytes` and `error` of each that torch sees."""
    gpu_error: str = ""
    """Why torch sees none, where it should."""
    memory_bytes: int = 0
    """Available."""
    shm_bytes: int = 0
    """Size of /dev/shm."""
    disks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Free and all bytes by folder."""
    unreadable: Mapping[str, str] = field(default_factory=dict)
    """Paths that it cannot read, and why."""
    unreachable: Mapping[str, str] = field(default_factory=dict)
    """`host:port` of other nodes that it cannot connect to, and why."""
    offered_gpus: float = 0
    """That it offers to Ray."""
    label: str = ""
    """Its accelerator type, by which runs choose nodes."""
    object_store_bytes: int = 0
    """Shared memory that Ray keeps objects in; 0 without Ray."""
    silent: str = ""
    """Why it could not be looked at; all else is then unknown."""


def require_readable(config: ExperimentConfig) -> None:
    """Check that the other nodes of the connected cluster read what this run's clients will.

    Raises:
        UserError: a node does not.
    """
    with needed(config) as (everywhere, _):
        reports = ask_nodes(everywhere, others_only=True) if everywhere else []
    bad = [f"{r.host} {r.silent}" for r in reports if r.silent]
    bad += [
        f"{r.host} cannot read {shown(path)}: {why}"
        for r in reports
        for path, why in r.unreadable.items()
    ]
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        raise UserError(
            f"node {bad[0]}{more}; put the data where every node reads it under the same path; "
            "`fedvsr doctor` checks all"
        )


def ask_nodes(
    paths: Sequence[str], use_gpus: bool = False, others_only: bool = False
) -> list[NodeReport]:
    """Run `probe` on the connected cluster's nodes, all at once; this node comes first.

    Args:
        paths: what each is to read.
        use_gpus: try those that a node offers.
        others_only: leave out this node, and nodes that offer no CPU, where no client can run.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # Nodes may have another version of this program, or none.
    ray.cloudpickle.register_pickle_by_value(probe)  # type: ignore[no-untyped-call]
    here = ray.get_runtime_context().get_node_id()
    known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = sorted((n for n in known if n["Alive"]), key=lambda n: n["NodeID"] != here)
    if others_only:
        nodes = [n for n in nodes if n["NodeID"] != here and n["Resources"].get("CPU")]
    # A process that has used a GPU keeps memory there until it ends.
    ask: Any = ray.remote(max_calls=1)(probe.probe)
    answers = []
    for node in nodes:
        peers = [
            (other["NodeManagerAddress"], other[port])
            for other in nodes
            for port in ("NodeManagerPort", "ObjectManagerPort")
            if other is not node and not others_only
        ]
        on_it = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        gpus = use_gpus and node["Resources"].get("GPU", 0) > 0
        task = ask.options(num_cpus=0, scheduling_strategy=on_it, max_retries=1)
        answers.append(task.remote(list(paths), peers, gpus))
    if answers:
        ray.wait(answers, num_returns=len(answers), timeout=_ANSWER_S)
    return [_report(node, answer) for node, answer in zip(nodes, answers, strict=True)]


def _report(node: Mapping[str, Any], answer: Any) -> NodeReport:
    import ray

    resources = node["Resources"]
    known: dict[str, Any] = {
        "offered_gpus": resources.get("GPU", 0),
        "label": node.get("Labels", {}).get(GPU_LABEL, ""),
        "object_store_bytes": int(resources.get("object_store_memory", 0)),
    }
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    try:
        values = ray.get(answer, timeout=0)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(answer, force=True)
        return NodeReport(name, {}, silent=f"did not answer within {_ANSWER_S} s", **known)
    except ray.exceptions.RayError as error:
        return NodeReport(name, {}, silent=str(error).splitlines()[0], **known)
    return NodeReport(**values | known | {"host": name})


@contextmanager
def needed(config: ExperimentConfig | None) -> Iterator[tuple[list[str], list[str]]]:
    """The paths that all nodes read, and those that only this one does.

    Videos, and folders of them, are cut here into the cache, which all nodes then read: whether
    they share it shows by a file that is put there meanwhile.
    """
    if config is None:
        yield [], []
        return
    files = config.files()
    everywhere = [p for key in ("model.weights", "model.flow_weights") for p in files.get(key, [])]
    here = files.get("data.videos", [])
    for folder in (p for key in ("data.train", "data.test") for p in files.get(key, [])):
        prepared = (Path(folder).expanduser() / "manifest.json").is_file()
        missing = not Path(folder).expanduser().is_dir()
        (everywhere if prepared or missing else here).append(folder)
    if not here:
        yield everywhere, here
        return
    cache = Path(config.data.cache_dir or default_cache_dir()).expanduser()
    mark = cache / f"{_MARK}{uuid.uuid4().hex[:8]}"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise UserError(f"data.cache_dir: {cache} cannot be written: {error.strerror}") from None
    try:
        yield [*everywhere, str(mark.absolute())], here
    finally:
        mark.unlink(missing_ok=True)


def shown(path: str) -> str:
    """A path as people know it: the cache, where it is our mark in it."""
    return f"data.cache_dir ({Path(path).parent})" if _MARK in path else path
