"""The judgement, on invented nodes; tests/integration/test_nodes.py checks real ones."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from typing import Any

import pytest

from fedvsr.cluster import doctor, probe
from fedvsr.cluster.doctor import judge, of_owners
from fedvsr.cluster.nodes import DataPaths, NodeReport, data_paths
from fedvsr.config import load_config
from fedvsr.data.config import OwnerConfig
from tests.unit.cli.test_cli import fedvsr

GIB = 2**30
DATA = {"/data": "/data"}
VERSIONS = {"python": "3.12.1", "ray": "2.60.0", "torch": "2.14.1", "fedvsr": "1 (source a)"}
A6000 = {"name": "NVIDIA RTX A6000", "bytes": 48 * GIB, "error": ""}
GOOD = NodeReport(
    host="a",
    versions=VERSIONS,
    gpus=[A6000] * 4,
    memory_bytes=100 * GIB,
    shm_bytes=64 * GIB,
    disks={"/tmp": (500 * GIB, 1000 * GIB)},
    offered_gpus=4,
    label="RTX-A6000",
    object_store_bytes=60 * GIB,
)


def changed(**values: Any) -> NodeReport:
    return dataclasses.replace(GOOD, host="b", **values)


def test_nodes_without_faults_give_only_good_findings() -> None:
    findings = judge([GOOD, changed()], DATA)
    assert {finding.level for finding in findings} == {"ok"}
    assert {finding.where for finding in findings} == {"a, b"}, "a line for both"
    checks = [f.check for f in findings]
    assert checks[:4] == ["python", "ray", "torch", "fedvsr"]
    assert set(checks[4:]) == {
        *("GPU", "GPU label", "free memory", "/dev/shm", "free disk", "ports", "data")
    }
    (gpu,) = [f for f in findings if f.check == "GPU"]
    assert gpu.found == "4 x NVIDIA RTX A6000, 51.5 GB, CUDA works"


@pytest.mark.parametrize(
    ("values", "check", "level", "found", "todo"),
    [
        (
            {"versions": VERSIONS | {"torch": "2.7.0"}},
            *("torch", "error", "2.7.0", "install 2.14.1 there, as on a"),
        ),
        (
            {"versions": VERSIONS | {"python": "3.11.7"}},
            *("python", "error", "3.11.7", "install 3.12.1"),
        ),
        (
            {"versions": VERSIONS | {"fedvsr": "1 (source b)"}},
            *("fedvsr", "error", "1 (source b)", "install 1 (source a)"),
        ),
        (
            {"versions": VERSIONS | {"fedvsr": None}},
            *("fedvsr", "error", "not installed", "install 1 (source a)"),
        ),
        (
            {"gpus": [], "gpu_error": "torch 2, built for CPUs, sees no GPU"},
            *("GPU", "error", "Ray offers 4, but torch 2, built for CPUs", "build of torch"),
        ),
        (
            {"gpus": [A6000, A6000 | {"error": "out of memory"}]},
            *("GPU", "error", "GPU 1: out of memory", "nvidia-smi"),
        ),
        (
            {"offered_gpus": 0, "label": ""},
            *("GPU", "warning", "Ray offers 0 of 4", "--num-gpus 4"),
        ),
        ({"label": ""}, "GPU label", "warning", "none", "--labels ray.io/accelerator-type=NAME"),
        ({"memory_bytes": GIB}, "free memory", "error", "1.1 GB", "free some"),
        (
            {"shm_bytes": GIB // 16},
            *("/dev/shm", "error", "67.1 MB, Ray's object store has 64.4 GB", "--shm-size=60g"),
        ),
        (
            {"disks": {"/tmp": (9 * GIB, 1000 * GIB), "/home": (9 * GIB, 10 * GIB)}},
            *("free disk", "error", "/tmp 9.7 GB, /home 9.7 GB", "free /tmp: Ray stops"),
        ),
        ({"disks": {"/tmp": (GIB, 10 * GIB)}}, "free disk", "error", "1.1 GB", "free /tmp"),
        (
            {"unreachable": {"10.0.0.1:4000": "Connection refused"}},
            *("ports", "error", "10.0.0.1:4000: Connection refused", "open all ports"),
        ),
        (
            {"unreadable": {"/data": "No such file or directory"}},
            *("data", "error", "/data: No such file", "every node"),
        ),
        ({"silent": "did not answer within 120 s"}, "node", "error", "did not answer", "take it"),
    ],
)
def test_each_fault_is_one_finding_of_its_node(
    values: dict[str, Any], check: str, level: str, found: str, todo: str
) -> None:
    findings = judge([GOOD, changed(**values)], DATA)
    (wrong,) = [finding for finding in findings if finding.level != "ok"]
    assert (wrong.check, wrong.where, wrong.level) == (check, "b", level)
    assert found in wrong.found
    assert todo in wrong.todo


def test_the_probe_describes_this_machine(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_bytes(b"v")
    with socket.socket() as listening, socket.socket() as free:
        for each in (listening, free):
            each.bind(("127.0.0.1", 0))
        listening.listen()
        here, gone = listening.getsockname()[1], free.getsockname()[1]
        peers = [("127.0.0.1", here), ("127.0.0.1", gone)]
        paths = [str(tmp_path), f"{tmp_path}/clip.mp4", f"{tmp_path}/no", "package:nope/a.mp4"]
        report = NodeReport(**probe.probe(paths, peers))
    assert list(report.unreachable) == [f"127.0.0.1:{gone}"]
    assert report.unreadable == {
        f"{tmp_path}/no": "No such file or directory",
        "package:nope/a.mp4": "the Python package nope is not installed",
    }
    assert all(report.versions.values())
    assert "(source " in str(report.versions["fedvsr"])
    assert report.memory_bytes > 0
    for free_bytes, total in report.disks.values():
        assert 0 < free_bytes <= total


def test_a_changed_source_is_another_version(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "fedvsr").mkdir()
    source = tmp_path / "fedvsr" / "__init__.py"
    seen = set()
    for text in ('__version__ = "1"\n', '__version__ = "1"  # patched\n'):
        source.write_text(text)
        fake = type("Module", (), {"__file__": str(source), "__version__": "1"})
        monkeypatch.setattr(probe.importlib, "import_module", lambda _, fake=fake: fake)
        seen.add(probe.probe([])["versions"]["fedvsr"])
    assert len(seen) == 2
    assert all(version.startswith("1 (source ") for version in seen)


def test_paths_that_every_node_reads(small_yaml: Path, tmp_path: Path) -> None:
    store, videos = tmp_path / "store", tmp_path / "videos"
    for folder in (store, videos):
        folder.mkdir()
    (store / "manifest.json").write_text("{}")
    cache = tmp_path / "cache"
    arguments = [f"data.train=[{store}, {videos}, /nowhere]", f"data.test=[{store}]"]
    config = load_config(
        str(small_yaml),
        [*arguments, "data.videos=[]", f"data.cache_dir={cache}", "model.weights=/w"],
    )
    with data_paths(config) as paths:
        everywhere = [*paths.everywhere]
        assert everywhere[:3] == ["/w", str(store), "/nowhere"]
        assert [*paths.here] == [str(videos)]
        (mark,) = everywhere[3:]
        assert paths.everywhere[mark] == f"data.cache_dir ({cache})"
        assert paths.everywhere["/w"] == "/w"
        assert Path(mark).parent == cache
        assert Path(mark).is_file()
    assert not any(cache.iterdir())


def test_the_command_prints_a_table_of_this_machine(
    small_yaml: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        monkeypatch.setattr(doctor, "PORTS", {taken.getsockname()[1]: "--port"})
        long = "/nowhere/" + 40 * "folder/" + "a.mp4"
        code = fedvsr("doctor", str(small_yaml), "--set", f"data.videos=[{long}]")
        lines = capsys.readouterr().out.splitlines()
        assert code == 1
        (data,) = [line for line in lines if line.startswith("data ")]
        assert "FAIL" in data
        assert f"{long}: No such file or directory" in data, "a line of a log is not folded"
        (port,) = [line for line in lines if line.startswith("port ")]
        assert "look" in port
        assert f"{taken.getsockname()[1]} is taken" in port
        assert any(line.startswith("torch ") and " ok " in line for line in lines)


def test_an_owners_stores_are_checked_on_its_nodes_alone() -> None:
    owners = {
        name: OwnerConfig(nodes={"owner": name}, train=[f"/{name}"]) for name in ("a", "b", "c")
    }
    paths = DataPaths({}, {}, owners)
    assert paths.owned({"owner": "a", "x": "y"}) == {"/a/manifest.json": "/a (data.owners.a)"}
    assert paths.owned({"x": "y"}) == {}
    missing = {"/b/manifest.json": "No such file or directory"}
    reports = [
        GOOD,
        changed(labels={"owner": "a"}),
        changed(labels={"owner": "b"}, unreadable=missing),
    ]
    found = [(f.where, f.level, f.found) for f in of_owners(reports, paths)]
    assert found == [
        ("b", "ok", "/a (data.owners.a)"),
        ("b", "error", "/b (data.owners.b): No such file or directory"),
        ("owner c", "error", "no node of this Ray cluster has the labels of owner c (owner=c)"),
    ]


def test_this_machine_alone_is_not_asked_for_owners_stores(small_yaml: Path) -> None:
    own = "data.owners.a={nodes: {owner: a}, train: [/stores/mine], clients: 4}"
    config = load_config(
        str(small_yaml), ["data.videos=[]", "data.num_clients=4", own, "data.test=[/t]"]
    )
    data = [f for f in doctor.look_here(config) if f.check == "data"]
    assert [(f.level, f.found.partition(":")[0]) for f in data] == [
        ("error", "/t"),
        ("warning", "not checked here, because it stays with its owners"),
    ]
