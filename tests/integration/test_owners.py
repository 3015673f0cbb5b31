"""Owners' clips on a cluster of three nodes, of which only an owner's own sees its folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import yaml
from ray.cluster_utils import Cluster

from fedvsr.cluster.doctor import look_around
from fedvsr.config import ExperimentConfig, load_config
from fedvsr.data.owned_clip import OwnedClip
from fedvsr.data.owners import Owners
from fedvsr.errors import UserError
from fedvsr.federation import connection, placement
from fedvsr.federation.client_states import ClientStates
from fedvsr.federation.config import ClusterConfig
from fedvsr.federation.executors import Clients, Fault, TrainedClient
from fedvsr.federation.ray_executor import RayExecutor
from fedvsr.messages import ClientTask
from fedvsr.models import build_fresh
from fedvsr.params import flatten
from fedvsr.records import load_results
from fedvsr.runs.launch import with_owners
from fedvsr.runs.run import create_run
from tests.conftest import moving_texture
from tests.integration.commands import wait_until
from tests.integration.equality import assert_equal_runs
from tests.integration.head import can_hide_folders, node_with
from tests.integration.running import on_ray, run_serially, split_of
from tests.unit.data.clips import write_store

pytestmark = [
    pytest.mark.ray,
    pytest.mark.full,
    pytest.mark.skipif(not can_hide_folders(), reason="may not mount"),
]

OWNERS = ("alice", "bob")


class Nodes:
    """The cluster, and the nodes of the owners.

    Args:
        address: of the cluster.
        folder: holds each owner's stores, which its node sees in `seen`.
        seen: the folder of the configuration; empty for everyone else.
    """

    def __init__(self, address: str, folder: Path, seen: Path) -> None:
        self._address, self._folder, self._seen = address, folder, seen
        self._started = dict[str, tuple[AbstractContextManager[Any], int]]()

    def start(self, name: str) -> None:
        stores, seen = self._folder / name, self._seen / name
        logs = self._folder / f"{name}-log"
        logs.mkdir(exist_ok=True)
        node = node_with(
            *(f"mount --bind {stores} {seen}", self._address, dict(os.environ), logs),
            *("--labels", f"owner={name}"),
        )
        self._started[name] = node, node.__enter__().pid
        wait_until(lambda: node_of(name) is not None)

    def end(self, name: str) -> None:
        """End a node as if its power failed, and wait until the cluster knows."""
        self._kill(name)
        wait_until(lambda: node_of(name) is None)

    def _kill(self, name: str) -> None:
        node, pid = self._started.pop(name)
        whole = psutil.Process(pid)
        for process in [whole, *whole.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        node.__exit__(None, None, None)

    def end_all(self) -> None:
        for name in list(self._started):
            self._kill(name)


def node_of(name: str) -> str | None:
    """Ray's id of an owner's node, if it is alive."""
    for node in placement.alive_nodes().values():
        if node["Labels"].get("owner") == name:
            return str(node["NodeID"])
    return None


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("owners")


@pytest.fixture(scope="module")
def config(folder: Path, small_yaml: Path) -> ExperimentConfig:
    """Two owners with a store each, of which alice's is dealt to two clients."""
    settings = yaml.safe_load(small_yaml.read_text())
    seen = folder / "seen"
    frames = {name: moving_texture(5, 48, 64, seed=i) for i, name in enumerate("abcdefgh")}
    write_store(seen / "alice" / "mine", {f"clip-{name}": frames[name] for name in "abcd"})
    write_store(seen / "bob" / "mine", {f"clip-{name}": frames[name] for name in "efg"})
    write_store(folder / "test", {"h": frames["h"]})
    settings["data"] = {
        "owners": {
            name: {
                "nodes": {"owner": name},
                "train": [str(seen / name / "mine")],
                "clients": num_clients,
            }
            for name, num_clients in zip(OWNERS, (2, 1), strict=True)
        },
        "test": [str(folder / "test")],
    }
    settings["federation"] = {"num_rounds": 2, "clients_per_round": 3}
    path = folder / "owned.yaml"
    path.write_text(yaml.safe_dump(settings))
    return load_config(str(path))


@pytest.fixture(scope="module")
def serial(config: ExperimentConfig, folder: Path) -> Path:
    """The folder of a serial run, made while this machine can read all stores."""
    return run_serially(config, folder / "out")


@pytest.fixture(scope="module")
def nodes(config: ExperimentConfig, serial: Path, folder: Path) -> Iterator[Nodes]:
    seen = folder / "seen"
    for name in OWNERS:
        (seen / name).rename(folder / name)
        (seen / name).mkdir()
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "object_store_memory": 100 << 20},
    )
    with ExitStack() as stack:
        stack.callback(cluster.shutdown)
        ray.init(address=cluster.address, log_to_driver=False)
        stack.callback(ray.shutdown)
        nodes = Nodes(cluster.address, folder, seen)
        stack.callback(nodes.end_all)
        # One after the other: nodes that start at once on one machine may choose the same sockets.
        for name in OWNERS:
            nodes.start(name)
        yield nodes


@pytest.mark.usefixtures("nodes")
def test_a_run_gives_the_bits_of_one_that_reads_everything(
    config: ExperimentConfig, serial: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"no clip store .*\(without Ray, the data of every owner"):
        run_serially(config, tmp_path / "serial")
    run = create_run(config, tmp_path / "out")
    assert not [event for event in on_ray(run) if isinstance(event, Fault)]
    assert_equal_runs(serial, run.folder)
    results = load_results(run.folder)
    trained = results.clients.groupby("client_id")["node"].agg(set)
    owners = Owners.in_config(config.data)
    assert dict(trained.items()) == {i: {node_of(owners.of(i))} for i in range(3)}
    held = results.partition.groupby("client_id")[["label", "clip_id"]].agg(list)
    assert held["label"].tolist() == [["alice"] * 2, ["alice"] * 2, ["bob"] * 3]
    text = run.folder.joinpath("partition.parquet").read_bytes()
    assert b"alice-0003" in text
    assert b"clip-a" not in text, "a clip's name has left its owner's node"


@pytest.mark.usefixtures("nodes")
def test_an_owners_path_is_checked_on_its_nodes_alone(config: ExperimentConfig) -> None:
    data = {f.found: (f.level, f.where) for f in look_around(config) if f.check == "data"}
    stores = {name: f"{config.data.owners[name].train[0]} (data.owners.{name})" for name in OWNERS}
    assert {found for found in data if "data.owners" in found} == set(stores.values())
    assert all(data[found][0] == "ok" for found in stores.values())
    assert all(data[found][1].count("(") == 1 for found in stores.values())
    wrong = config.data.owners["bob"].model_copy(update={"nodes": {"owner": "alice"}})
    owners = {**config.data.owners, "bob": wrong}
    changed = config.model_copy(update={"data": config.data.model_copy(update={"owners": owners})})
    with pytest.raises(UserError, match=r"there is no clip store .*/seen/bob/mine on"):
        with_owners(changed, split_of(changed), on_ray=True)


def test_a_lost_owner_is_absent_until_it_has_a_node_again(
    config: ExperimentConfig, nodes: Nodes
) -> None:
    split = with_owners(config, split_of(config), on_ray=True)
    assert all(isinstance(clip, OwnedClip) for clip in split.train)
    cluster, owners = ClusterConfig(), Owners.in_config(config.data)
    wanted = placement.ask(cluster, 1, 3, owners, connection.here())
    placed = placement.request(wanted, connection.here())
    placed.require_ready(cluster.placement_timeout_s)
    clients = Clients(config.model, config.algorithm, config.local, split.clients)
    executor = RayExecutor(clients, cluster, placed)
    shared = {"params": flatten(build_fresh(config.model))}
    states = ClientStates(Path("unused"), 0)

    def clients_of_round(round_idx: int) -> tuple[list[int], list[Fault]]:
        tasks = [ClientTask(i, round_idx, 9, seed=i) for i in (2, 0)]
        results = list(executor.run_round(tasks, shared, states))
        trained = [r.outcome.report.client_id for r in results if isinstance(r, TrainedClient)]
        return trained, [r for r in results if isinstance(r, Fault)]

    try:
        trained, faults = clients_of_round(1)
        assert (sorted(trained), faults) == ([0, 2], [])
        nodes.end("bob")
        trained, (fault,) = clients_of_round(2)
        assert trained == [0]
        assert (fault.client_id, fault.kind, fault.final) == (2, "node_lost", True)
        assert fault.message.startswith("client 2 in round 2: no node of owner bob (owner=bob) is")
        assert isinstance(fault.error, UserError)
        nodes.start("bob")
        wait_until(lambda: node_of("bob") in {place.node_id for place in placed.places()})
        trained, faults = clients_of_round(3)
        assert (sorted(trained), faults) == ([0, 2], [])
    finally:
        executor.close()
        placed.release()
