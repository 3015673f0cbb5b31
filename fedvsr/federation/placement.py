"""Where actors may run: a placement group with a bundle for the driver and one for each slot."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import ray
from ray.util.placement_group import (
    PlacementGroup,
    placement_group,
    placement_group_table,
    remove_placement_group,
)
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from fedvsr.data.owners import NOBODY, Owners, has_labels, shown
from fedvsr.errors import UserError
from fedvsr.federation.config import GPU_LABEL, ClusterConfig
from fedvsr.limits import ANSWER_S, ClusterGoneError, within

DEFAULT_GPU_SHARE = 0.1
_NODE_LABEL = "ray.io/node-id"

Resources = dict[str, float]
T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """A set of slots that an actor may take any of: a GPU's or, without GPUs, a node's."""

    node_id: str
    device: str
    """`CPU`, or the kind of GPU."""
    bundles: tuple[int, ...]
    """Bundles of the placement group; actors are pinned to the first."""
    slots: tuple[int, ...]
    """Numbers of its slots in the run, from 0. Each trains one client at a time."""
    owner: str = ""
    """The owner whose clients alone train here; '' without owners."""


@dataclass(frozen=True)
class Slots:
    """What a run requests from a cluster."""

    num_bundles: int
    """Bundles besides the driver's."""
    per_bundle: int
    """Clients that train in a bundle at the same time."""
    gpu_share: float
    """GPU share of a client's actor; 0 without GPUs."""
    bundle: Mapping[str, float]
    accelerator: str | None = None
    owners: Owners = NOBODY
    bundle_owners: tuple[str, ...] = ()
    """The owner of each bundle besides the driver's; empty without owners."""

    def owner_of(self, bundle: int) -> str:
        """The owner of a bundle, from 1; '' without owners."""
        return self.bundle_owners[bundle - 1] if self.bundle_owners else ""

    @property
    def bundles(self) -> list[Resources]:
        """Resources of each bundle: the driver's, then those with slots."""
        return [{"CPU": 1.0}, *(dict(self.bundle) for _ in range(self.num_bundles))]

    @property
    def selectors(self) -> list[dict[str, str]]:
        """Labels that the node of each bundle must have."""
        needed = {GPU_LABEL: self.accelerator} if self.accelerator else {}
        bundles = range(1, 1 + self.num_bundles)
        return [{}, *({**needed, **self.owners.labels(self.owner_of(i))} for i in bundles)]


@dataclass(frozen=True)
class Placement:
    """A placement group, and where actors go in it. It is reserved once it `is_ready`."""

    group: PlacementGroup
    wanted: Slots

    def places(self) -> list[Place]:
        """The places on living nodes, in the order of their bundles.

        Raises:
            ClusterGoneError: the cluster does not answer.
        """
        alive = alive_nodes()
        nodes = asked(lambda: placement_group_table(self.group))["bundles_to_node_id"]
        where = [(i, nodes.get(i)) for i in range(1, 1 + self.wanted.num_bundles)]
        where = [(i, node) for i, node in where if node in alive]
        per_bundle = self.wanted.per_bundle
        slots = {i: tuple((i - 1) * per_bundle + k for k in range(per_bundle)) for i, _ in where}
        if self.wanted.gpu_share:
            kinds = {i: alive[node]["Labels"].get(GPU_LABEL, "GPU") for i, node in where}
            owner_of = self.wanted.owner_of
            return [Place(node, kinds[i], (i,), slots[i], owner_of(i)) for i, node in where]
        by_node = dict[tuple[str, str], list[int]]()
        for i, node in where:
            by_node.setdefault((node, self.wanted.owner_of(i)), []).append(i)
        return [
            Place(node, "CPU", tuple(own), tuple(s for i in own for s in slots[i]), owner)
            for (node, owner), own in by_node.items()
        ]

    @property
    def max_live_per_place(self) -> float:
        """Number of actors that a place can hold."""
        share = self.wanted.gpu_share
        # In units of 1/10,000, as Ray counts: 1 / 0.1 must give 10.
        return 10_000 // round(share * 10_000) if share else math.inf

    def options(self, bundle: int, num_gpus: float) -> dict[str, Any]:
        """Ray options of an actor in a bundle. It requests no CPU: slots limit the load."""
        strategy = PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=bundle)
        return {
            "num_cpus": 0,
            "num_gpus": num_gpus,
            "max_restarts": 0,
            "scheduling_strategy": strategy,
        }

    def is_ready(self, timeout_s: float) -> bool:
        """Whether the resources are reserved, after a wait of at most `timeout_s` if they are not.

        Raises:
            ClusterGoneError: the cluster does not answer.
        """
        ready: bool = asked(lambda: self.group.wait(timeout_s), timeout_s + ANSWER_S)
        return ready

    def require_ready(self, timeout_s: float) -> None:
        """Wait until the resources are reserved.

        Raises:
            UserError: others still hold them after `timeout_s`.
            ClusterGoneError: the cluster does not answer.
        """
        if not self.is_ready(timeout_s):
            free = asked(lambda: ray.available_resources())  # type: ignore[no-untyped-call]
            raise UserError(
                f"the run asks for {self}, and after {timeout_s:g} s others still hold too much "
                f"of the cluster: free are {_amounts([free])}; wait, or {_way_out(self.wanted)}"
            )

    def __str__(self) -> str:
        return _amounts(self.wanted.bundles)

    def release(self) -> None:
        """Release the reserved resources."""
        # A cluster that has just gone holds none.
        with suppress(ClusterGoneError):
            asked(lambda: remove_placement_group(self.group))


def ask(
    config: ClusterConfig,
    num_threads: int,
    cohort: int,
    owners: Owners = NOBODY,
    driver_node: str | None = None,
) -> Slots:
    """Work out what a run requests from the connected cluster.

    Args:
        config: the settings.
        num_threads: CPU threads of a client.
        cohort: clients of a round; more slots would stay idle.
        owners: each of them gets slots on its own nodes.
        driver_node: Ray's id of the node for the driver's bundle, as far as it is known.

    Raises:
        UserError: the cluster has no such GPU, or no room for an owner.
    """
    wanted = _ask(config, num_threads, cohort)
    return _for_owners(wanted, owners, config.slots, cohort, driver_node) if owners else wanted


def _ask(config: ClusterConfig, num_threads: int, cohort: int) -> Slots:
    """What a run without owners requests."""
    nodes = list(alive_nodes().values())
    num_gpus = sum(gpus_of(node) for node in nodes if suits(config, node))
    share = config.gpu_share
    if share is None and (num_gpus or config.accelerator):
        share = min(DEFAULT_GPU_SHARE, 1 / config.num_per_gpu)
    if share:
        if not num_gpus:
            kind = f"{config.accelerator} GPU" if config.accelerator else "GPU"
            name = "accelerator" if config.accelerator else "gpu_share"
            value = config.accelerator or f"{share:g}"
            raise UserError(
                f"cluster.{name} = {value}, but this Ray cluster has no {kind} ({_describe(nodes)})"
                "; set it to one that it has"
            )
        per_bundle = config.num_per_gpu
        slots = config.slots or min(cohort, num_gpus * per_bundle)
        bundle = {"GPU": 1.0, "CPU": float(num_threads)}
        return Slots(math.ceil(slots / per_bundle), per_bundle, share, bundle, config.accelerator)
    cpus = [int(node["Resources"].get("CPU", 0)) for node in nodes]
    fits = sum(n // num_threads for n in cpus)
    # The driver takes a processor that no slot uses, or else one of a slot.
    fits -= all(n % num_threads == 0 for n in cpus)
    fits = max(1, fits)
    return Slots(config.slots or min(cohort, fits), 1, 0.0, {"CPU": float(num_threads)})


def suits(config: ClusterConfig, node: Mapping[str, Any]) -> bool:
    """Whether a node has the kind of GPU that a run wants."""
    return config.accelerator in (None, node["Labels"].get(GPU_LABEL))


def gpus_of(node: Mapping[str, Any]) -> int:
    """The number of GPUs that a node offers."""
    return int(node["Resources"].get("GPU", 0))


def _for_owners(
    wanted: Slots, owners: Owners, slots: int | None, cohort: int, driver_node: str | None
) -> Slots:
    """Deal slots to owners in proportion to their clients, at least a bundle to each.

    Args:
        wanted: what would be requested without owners.
        owners: the owners.
        slots: `cluster.slots`; None deals what the owners' nodes can hold, up to a cohort.
        cohort: clients of a round.
        driver_node: see `ask`.

    Raises:
        UserError: there are fewer slots than owners, or an owner's nodes have no room.
    """
    names, per_bundle = owners.names, wanted.per_bundle
    if slots is not None and slots < len(names):
        raise UserError(
            f"cluster.slots = {slots} is fewer than the {len(names)} owners of data.owners, which "
            f"need one each; set it to {len(names)} or more"
        )
    room = _Room(alive_nodes().values(), driver_node)
    accelerator = {GPU_LABEL: wanted.accelerator} if wanted.accelerator else {}
    num_bundles = max(len(names), math.ceil((slots or cohort) / per_bundle))
    dealt, full = Counter[str](), set[str]()
    clients = dict(zip(names, owners.num_clients, strict=True))
    while dealt.total() < num_bundles and len(full) < len(names):
        # The highest average (D'Hondt); an owner without a bundle comes first.
        name = max(
            (n for n in names if n not in full),
            key=lambda n: (not dealt[n], clients[n] / (dealt[n] + 1)),
        )
        labels = {**accelerator, **owners.labels(name)}
        if dealt[name] * per_bundle >= clients[name]:
            full.add(name)
        elif room.take(wanted.bundle, labels) or (slots is not None and dealt[name]):
            # `cluster.slots` are dealt even if there is no room for them: `request` then fails.
            dealt[name] += 1
        elif dealt[name]:
            full.add(name)
        else:
            raise UserError(
                f"no node of owner {name} ({shown(labels)}) has room for a slot of "
                f"{_amounts([wanted.bundle])}; start one with `ray start --labels {shown(labels)}`"
                ", or correct data.owners"
            )
    bundle_owners = tuple(name for name in names for _ in range(dealt[name]))
    return replace(
        wanted, num_bundles=len(bundle_owners), owners=owners, bundle_owners=bundle_owners
    )


class _Room:
    """What an empty cluster has, as bundles take it by first fit.

    Args:
        nodes: Ray's descriptions of the nodes.
        driver_node: the node of a driver's bundle, which is taken at once.
    """

    def __init__(
        self, nodes: Collection[Mapping[str, Any]], driver_node: str | None = None
    ) -> None:
        self._left = [(Counter(node["Resources"]), node["Labels"]) for node in nodes]
        for node, (resources, _) in zip(nodes, self._left, strict=True):
            if node["NodeID"] == driver_node:
                resources.subtract({"CPU": 1.0})

    def take(self, bundle: Mapping[str, float], labels: Mapping[str, str]) -> bool:
        """Take a bundle on a node with labels; False if none has room."""
        for resources, known in self._left:
            has_room = all(resources[name] >= amount for name, amount in bundle.items())
            if has_room and has_labels(known, labels):
                resources.subtract(bundle)
                return True
        return False


def request(wanted: Slots, driver_node: str | None = None) -> Placement:
    """Ask the cluster for a run's placement group, which others may hold for a while.

    Args:
        wanted: the result of `ask`.
        driver_node: Ray's id of the node for the driver's bundle (default: any).

    Raises:
        UserError: the cluster lacks the resources.
        ClusterGoneError: the cluster does not answer.
    """
    bundles, selectors = wanted.bundles, wanted.selectors
    if driver_node:
        # By its id: several nodes may have one address.
        selectors[0] = {_NODE_LABEL: driver_node}
    nodes = list(alive_nodes().values())
    if not _fits(bundles, selectors, nodes):
        raise UserError(
            f"the run asks for {_amounts(bundles)} ({_way_out(wanted)}), and this Ray cluster has "
            f"only {_describe(nodes)}"
        )
    group = asked(
        lambda: placement_group(bundles, strategy="PACK", bundle_label_selector=selectors)
    )
    return Placement(group, wanted)


def alive_nodes() -> dict[str, dict[str, Any]]:
    """Ray's description of every living node, by node id.

    Raises:
        ClusterGoneError: the cluster does not answer.
    """
    nodes: list[dict[str, Any]] = asked(ray.nodes)
    return {node["NodeID"]: node for node in nodes if node["Alive"]}


def require_node(node_id: str) -> None:
    """Check that a node, by Ray's id, is alive: the one of this process.

    Raises:
        ClusterGoneError: it is not, or the cluster does not answer.
    """
    if node_id not in alive_nodes():
        raise ClusterGoneError("Ray's process on this machine, the raylet, has died")


def asked(call: Callable[[], T], limit_s: float = ANSWER_S) -> T:
    """What the cluster's head answers to a call of Ray's.

    Raises:
        ClusterGoneError: it does not answer.
    """
    try:
        return within(limit_s, call)
    except TimeoutError as error:
        message = f"Ray's head process, the GCS, has died or cannot be reached: {error}"
        raise ClusterGoneError(message) from None


def _fits(
    bundles: Sequence[Mapping[str, float]],
    selectors: Sequence[Mapping[str, str]],
    nodes: Collection[Mapping[str, Any]],
) -> bool:
    """Whether the cluster could hold the bundles if it were empty, by first fit."""
    room = _Room(nodes)
    return all(room.take(*each) for each in zip(bundles, selectors, strict=True))


def _way_out(wanted: Slots) -> str:
    each = Counter(wanted.bundle_owners).items()
    dealt = ", ".join(f"{name} {count * wanted.per_bundle}" for name, count in each)
    number = f"{wanted.num_bundles * wanted.per_bundle}{f' ({dealt})' if dealt else ''}"
    return f"lower cluster.slots = {number} or local.num_threads"


def _amounts(all_resources: Iterable[Mapping[str, float]]) -> str:
    total = Counter[str]()
    for resources in all_resources:
        total.update({k: v for k, v in resources.items() if k in ("CPU", "GPU")})
    return " and ".join(f"{total[name]:g} {name}" for name in ("GPU", "CPU") if name in total)


def _describe(nodes: Sequence[Mapping[str, Any]]) -> str:
    def one(node: Mapping[str, Any]) -> str:
        label = node["Labels"].get(GPU_LABEL)
        return _amounts([node["Resources"]]) + (f" ({label})" if label else "")

    return f"{len(nodes)} nodes: " + ", ".join(one(node) for node in nodes[:8])
