from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.federation import gpu_probe, placement
from fedvsr.federation.config import GPU_LABEL, ClusterConfig
from fedvsr.federation.executors import Clients
from fedvsr.federation.gpu_sharing import Card, Room, choose, keep, key_of, recall
from fedvsr.training.footprint import Footprint
from tests.drained import drained

GB = 10**9
ROOMY = Room(clients=100, processors=100, max_live=0)


def taken(busy: float, peak_gb: float, total_gb: float = 80, idle_gb: float = 0.5) -> Footprint:
    return Footprint("card", int(total_gb * GB), int(peak_gb * GB), int(idle_gb * GB), busy)


@pytest.mark.parametrize(
    ("footprint", "room", "count", "reason"),
    [
        # 3 x 0.24 = 0.72 of the time is too little, 4 x 0.24 = 0.96 is enough.
        (taken(0.24, 10), ROOMY, 4, "keeps it busy"),
        (taken(0.97, 10), ROOMY, 1, "keeps it busy"),
        (taken(0.9, 10), ROOMY, 1, "keeps it busy"),
        (taken(0.45, 10), ROOMY, 2, "keeps it busy"),
        (taken(0.0, 1, idle_gb=0), ROOMY, 64, "keeps it busy"),
        # 90 % of 80 GB are 72: three times 20.
        (taken(0.1, 20), ROOMY, 3, "memory"),
        # Five processes wait beside three: 60 + 5 x 2.4 = 72; with 2.5 each only two train.
        (taken(0.1, 20, idle_gb=2.4), replace(ROOMY, max_live=8), 3, "memory"),
        (taken(0.1, 20, idle_gb=2.5), replace(ROOMY, max_live=8), 2, "memory"),
        # It does not fit even alone; its own error says more than a refusal would.
        (taken(0.1, 79), ROOMY, 1, "memory"),
        (taken(0.1, 1), replace(ROOMY, clients=3), 3, "train at once"),
        (taken(0.1, 1), replace(ROOMY, processors=2), 2, "processors"),
    ],
)
def test_the_number_of_clients(footprint: Footprint, room: Room, count: int, reason: str) -> None:
    chosen, why = choose(footprint, room)
    assert chosen == count
    assert reason in why


def clients_of(*changes: str) -> Clients:
    config = load_config("demo", ["model.name=rvrt", "model.size=demo", *changes])
    return Clients(config.model, config.algorithm, config.local, ())


CARD = Card("card", 80 * GB)


@pytest.mark.parametrize(
    ("change", "matters"),
    [
        ("local.num_frames=8", True),
        ("local.crop=160", True),
        ("local.precision=bf16", True),
        ("local.mirror=true", True),
        ("local.optimizer=sgd", True),
        ("model.checkpointing=attention", True),
        ("algorithm.name=scaffold", True),
        ("local.lr=1e-3", False),
        ("local.steps=7", False),
        ("algorithm.mu=0.5", False),
        ("seed=3", False),
    ],
)
def test_a_footprint_is_kept_by_the_settings_that_change_it(change: str, matters: bool) -> None:
    assert (key_of(clients_of(change), CARD) != key_of(clients_of(), CARD)) == matters


def test_a_footprint_is_kept_by_card() -> None:
    clients = clients_of()
    cards = [CARD, replace(CARD, name="other"), replace(CARD, total_bytes=40 * GB)]
    assert len({key_of(clients, card) for card in cards}) == 3


def test_what_was_measured_is_kept_until_its_file_is_damaged(tmp_path: Path) -> None:
    file, first, second = tmp_path / "new" / "kept.json", taken(0.5, 1), taken(0.25, 2)
    assert recall(file, "first") is None
    keep(file, "first", first)
    keep(file, "second", second)
    assert (recall(file, "first"), recall(file, "second")) == (first, second)
    assert recall(file, "third") is None
    file.write_text(file.read_text().replace("0.25", "0.24"))
    assert recall(file, "second") is None, "its checksum is not that of its content"
    keep(file, "third", first)
    assert list(json.loads(file.read_text())["footprints"]) == ["third"]


def test_auto_is_a_number_or_a_word() -> None:
    assert ClusterConfig(clients_per_gpu="auto").num_per_gpu == 1
    assert ClusterConfig(clients_per_gpu=3).num_per_gpu == 3
    with pytest.raises(UserError, match=r"^cluster\.clients_per_gpu = 'many': .* or .*'auto'$"):
        load_config("demo", ["cluster.clients_per_gpu=many"])
    with pytest.raises(UserError, match=r"^cluster\.clients_per_gpu = 0: .*equal to 1"):
        load_config("demo", ["cluster.clients_per_gpu=0"])
    with pytest.raises(UserError, match="clients_per_gpu = true: true and false are not numbers"):
        load_config("demo", ["cluster.clients_per_gpu=true"])


def test_a_given_number_asks_no_cluster(tmp_path: Path) -> None:
    config = ClusterConfig(clients_per_gpu=2)
    assert drained(gpu_probe.resolved(config, clients_of(), 4, tmp_path)) == ([], (config, ()))


def node(name: str, kind: str, gpus: int, cpus: int = 64) -> dict[str, Any]:
    return {
        "NodeID": name,
        "NodeManagerHostname": name,
        "Alive": True,
        "Labels": {GPU_LABEL: kind},
        "Resources": {"GPU": gpus, "CPU": cpus},
    }


def test_the_kind_of_gpu_with_room_for_fewest_decides() -> None:
    roomy = (node("a", "H100", 2), gpu_probe.Measured(taken(0.24, 10), before=False))
    tight = (node("b", "T4", 2), gpu_probe.Measured(taken(0.24, 6, total_gb=16), before=True))
    config, clients = ClusterConfig(max_live_clients=1), clients_of()
    count, why = gpu_probe._fewest([roomy, tight], config, clients, 8)
    assert count == 2
    assert why == (
        "more do not fit into its memory; on card a client computes 24% of the time and takes 6.0 "
        "GB of 16.0 GB (measured by an earlier run), the kind of GPU with room for fewest"
    )
    count, why = gpu_probe._fewest([roomy], config, clients, 8)
    assert (count, "which keeps it busy; on card" in why) == (4, True)
    slow = (node("c", "H100", 2, cpus=6), roomy[1])
    assert gpu_probe._fewest([slow], config, clients, 8)[0] == 3
    count, why = gpu_probe._fewest(
        [roomy, (tight[0], "no answer within 630 s")], config, clients, 8
    )
    assert (count, why) == (1, "the GPU of node b was not measured: no answer within 630 s")


@pytest.mark.parametrize(
    ("nodes", "settings", "why"),
    [
        ([], {}, "the run uses no GPU"),
        ([node("a", "H100", 1)], {"gpu_share": 0}, "the run uses no GPU"),
        ([node("a", "H100", 1)], {"accelerator": "T4"}, "the run uses no GPU"),
        ([node("a", "H100", 4)], {}, "4 GPUs are enough for all clients that train at once"),
    ],
)
def test_nothing_is_measured_for_nothing(
    nodes: list[dict[str, Any]],
    settings: dict[str, Any],
    why: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(placement.ray, "nodes", lambda: nodes)
    auto = ClusterConfig(clients_per_gpu="auto", **settings)
    waits, (config, notes) = drained(gpu_probe.resolved(auto, clients_of(), 4, tmp_path))
    assert waits == []
    assert config.clients_per_gpu == 1
    assert notes == (f"cluster.clients_per_gpu = auto is 1 here: {why}",)


def test_a_client_is_measured_once_for_a_card(tmp_path: Path) -> None:
    asked, clients = list[Clients](), clients_of()

    def measure(clients: Clients) -> Footprint:
        asked.append(clients)
        return taken(0.5, len(asked))

    probe = gpu_probe.Probe(lambda: CARD, measure)
    first, again, other = (
        gpu_probe._measured(probe, c, str(tmp_path))
        for c in (clients, clients_of("local.lr=1e-3"), clients_of("local.num_frames=8"))
    )
    assert (first.before, again.before, other.before) == (False, True, False)
    assert (first.taken, other.taken) == (again.taken, taken(0.5, 2))
    assert len(asked) == 2
    tmp_path.joinpath("file").touch()
    unkept = gpu_probe._measured(probe, clients, str(tmp_path / "file"))
    assert unkept.unkept.endswith(": File exists"), unkept
    assert len(asked) == 3


@pytest.mark.gpu
def test_this_gpu_is_measured(tmp_path: Path) -> None:
    clients = clients_of("local.batch_size=1")
    first, again = (
        gpu_probe._measured(gpu_probe.Probe(), clients, str(tmp_path)) for _ in range(2)
    )
    assert (first.before, again.before) == (False, True)
    assert again.taken == first.taken
    assert 0 < first.taken.idle_bytes < first.taken.peak_bytes < first.taken.total_bytes
    count, _ = choose(first.taken, ROOMY)
    assert count * first.taken.peak_bytes < first.taken.total_bytes or count == 1
