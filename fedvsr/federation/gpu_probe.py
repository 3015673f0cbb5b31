"""Measures, on the connected cluster, how many clients share a GPU: `clients_per_gpu: auto`.

It does so before the run reserves its slots, because their number depends on it. Each kind of GPU
that the run may get is measured, by a task that holds a whole one. All GPUs of a run take equally
many clients, so the kind with the fewest decides.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fedvsr.errors import UserError
from fedvsr.federation.calls import Call, answers
from fedvsr.federation.config import AUTO, GPU_LABEL, ClusterConfig
from fedvsr.federation.executors import Clients, Delay, first_line
from fedvsr.federation.gpu_sharing import FILE, Card, Room, choose, describe, keep, key_of, recall
from fedvsr.federation.placement import DEFAULT_GPU_SHARE, alive_nodes, gpus_of, suits
from fedvsr.training.footprint import Footprint, measure

# To start a process, compile the kernels of a network and take some steps, or to be told of those.
_MEASURE_S = 600.0
_SETTING = f"cluster.clients_per_gpu = {AUTO}"


def card_here() -> Card:
    """The GPU of this process.

    Raises:
        UserError: PyTorch sees none.
    """
    if not torch.cuda.is_available():
        raise UserError("PyTorch sees no GPU there")
    return Card(torch.cuda.get_device_name(), torch.cuda.mem_get_info()[1])


def measure_here(clients: Clients) -> Footprint:
    """What a client takes of the GPU of this process."""
    return measure(clients.make_trainer())


@dataclass(frozen=True)
class Probe:
    """What is called in a process that holds a GPU."""

    card: Callable[[], Card] = card_here
    measure: Callable[[Clients], Footprint] = measure_here


@dataclass(frozen=True)
class Measured:
    """What a client takes of a GPU, as a process there tells it."""

    taken: Footprint
    before: bool
    """Whether it was measured before, by another run."""
    unkept: str = ""
    """Why the next run will have to measure again."""


def resolved(
    config: ClusterConfig,
    clients: Clients,
    cohort: int,
    cache: Path,
    probe: Probe | None = None,
) -> Generator[Delay, None, tuple[ClusterConfig, tuple[str, ...]]]:
    """Replace `auto` by a number of clients for each GPU of the connected cluster.

    Args:
        config: the settings.
        clients: how clients train; their clips do not matter.
        cohort: clients of a round.
        cache: folder, on the node of the GPU, of the file that keeps what was measured.
        probe: what measures.

    Yields:
        Once, if GPUs are about to be asked.

    Returns:
        The settings, and a note on the choice; none if the number was given.
    """
    if config.clients_per_gpu != AUTO:
        return config, ()
    count, reason = yield from _count(config, clients, cohort, cache, probe or Probe())
    changed = config.model_copy(update={"clients_per_gpu": count})
    return changed, (f"{_SETTING} is {count} here: {reason}",)


def _count(
    config: ClusterConfig, clients: Clients, cohort: int, cache: Path, probe: Probe
) -> Generator[Delay, None, tuple[int, str]]:
    nodes = [node for node in alive_nodes().values() if gpus_of(node) and suits(config, node)]
    if not nodes or config.gpu_share == 0:
        return 1, "the run uses no GPU"
    num_gpus = sum(map(gpus_of, nodes))
    num_clients = math.ceil((config.slots or cohort) / num_gpus)
    if num_clients == 1:
        return 1, f"{num_gpus} GPUs are enough for all clients that train at once"
    limit_s = config.placement_timeout_s + _MEASURE_S
    yield Delay("measuring how many clients a GPU can train at once", limit_s)
    measured = _measure_on(nodes, clients, cache, probe, limit_s)
    return _fewest(measured, config, clients, num_clients)


def _fewest(
    measured: Sequence[tuple[Mapping[str, Any], Measured | str]],
    config: ClusterConfig,
    clients: Clients,
    num_clients: int,
) -> tuple[int, str]:
    """The number of clients that share each GPU, and why, from what each kind of GPU gave.

    Args:
        measured: results of `_measure_on`.
        config: the settings.
        clients: how clients train.
        num_clients: clients that train at once, for each GPU.
    """
    choices = []
    for node, result in measured:
        if isinstance(result, str):
            return 1, f"the GPU of node {node['NodeManagerHostname']} was not measured: {result}"
        room = Room(num_clients, _processors(node, clients), _max_live(config))
        count, reason = choose(result.taken, room)
        when = "measured by an earlier run" if result.before else "measured now"
        text = f"{reason}; on {result.taken.device} {describe(result.taken)} ({when})"
        choices.append((count, text + (f", not kept: {result.unkept}" if result.unkept else "")))
    count, text = min(choices)
    others = ", the kind of GPU with room for fewest" if len({n for n, _ in choices}) > 1 else ""
    return count, text + others


def _max_live(config: ClusterConfig) -> int:
    """Processes that may live on a GPU if not all of them train."""
    if config.isolation == "slot":
        return 1
    share = config.gpu_share or DEFAULT_GPU_SHARE
    # The evaluator's process is one of them.
    return min(int(1 / share), config.max_live_clients + 1)


def _processors(node: Mapping[str, Any], clients: Clients) -> int:
    per_gpu = node["Resources"].get("CPU", 0) / gpus_of(node)
    return max(1, int(per_gpu // clients.local.num_threads))


def _measure_on(
    nodes: Sequence[Mapping[str, Any]],
    clients: Clients,
    cache: Path,
    probe: Probe,
    limit_s: float,
) -> list[tuple[Mapping[str, Any], Measured | str]]:
    """What each kind of GPU gives, or why it gives nothing, with a node that has it."""
    # Without a label, each node may have a kind of its own.
    kinds = {node["Labels"].get(GPU_LABEL) or node["NodeID"]: node for node in nodes}
    calls = [
        Call(str(node["NodeID"]), _measured, (probe, clients, str(cache)), num_gpus=1)
        for node in kinds.values()
    ]
    results = answers(calls, limit_s)
    return [
        (node, first_line(result) if isinstance(result, Exception) else result)
        for node, result in zip(kinds.values(), results, strict=True)
    ]


def _measured(probe: Probe, clients: Clients, cache: str) -> Measured:
    """In a process that holds a GPU: what a client takes of it."""
    file = Path(cache).expanduser() / FILE
    key = key_of(clients, probe.card())
    if known := recall(file, key):
        return Measured(known, before=True)
    taken = probe.measure(clients)
    try:
        keep(file, key, taken)
    except OSError as error:
        return Measured(taken, before=False, unkept=f"{file}: {error.strerror}")
    return Measured(taken, before=False)
