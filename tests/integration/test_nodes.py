"""A cluster of two real nodes on this machine; the second one has faults."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import ray
import torch
from ray.cluster_utils import Cluster

from fedvsr.cluster.doctor import Finding, look_around
from fedvsr.cluster.nodes import require_readable
from fedvsr.config import load_config
from fedvsr.errors import UserError
from fedvsr.federation.calls import Call, answers
from fedvsr.federation.placement import alive_nodes
from tests.integration.commands import wait_until
from tests.unit.cli.test_cli import fedvsr

pytestmark = [pytest.mark.ray, pytest.mark.full]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    # Metadata of another torchvision, which the second node's processes read.
    other = tmp_path_factory.mktemp("other")
    (other / "torchvision-0.0.1.dist-info").mkdir()
    metadata = "Metadata-Version: 2.1\nName: torchvision\nVersion: 0.0.1\n"
    (other / "torchvision-0.0.1.dist-info" / "METADATA").write_text(metadata)
    common = {"object_store_memory": 100 << 20}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, **common})
    cluster.add_node(
        num_cpus=1,
        num_gpus=2,
        labels={"ray.io/accelerator-type": "RTX-A6000"},
        env_vars={"PYTHONPATH": str(other)},
        **common,
    )
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.fixture(scope="module")
def connected(cluster: Cluster) -> Iterator[None]:
    ray.init(address=cluster.address, log_to_driver=False)
    yield
    ray.shutdown()


def of(findings: list[Finding], check: str) -> dict[str, str]:
    return {f.found: f.level for f in findings if f.check == check}


@pytest.mark.usefixtures("connected")
def test_doctor_checks_every_node(small_yaml: Path) -> None:
    config = load_config(str(small_yaml), ["model.weights=/nowhere/w.safetensors"])
    findings = look_around(config)
    (ours,) = of(findings, "python")
    assert of(findings, "python")[ours] == "ok"
    assert [f.where.count("(") for f in findings if f.check == "python"] == [2]
    assert of(findings, "ray") == {ray.__version__: "ok"}
    assert of(findings, "torchvision") == {"0.0.1": "error"}
    (differs,) = [f for f in findings if f.check == "torchvision"]
    assert "there, as on" in differs.todo
    assert of(findings, "GPU label") == {"RTX-A6000": "ok"}
    assert of(findings, "ports") == {"all reached": "ok"}
    assert list(of(findings, "/dev/shm").values()) == ["ok"]
    data = of(findings, "data")
    assert data["/nowhere/w.safetensors: No such file or directory"] == "error"
    assert data[f"data.cache_dir ({config.data.cache_dir})"] == "ok"
    assert data[config.data.videos[0]] == "ok"
    cache = Path(str(config.data.cache_dir))
    assert not [path for path in cache.iterdir() if path.name.startswith(".seen")]


def die_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "alive"


def hang(marker: Path) -> None:
    marker.write_text(str(os.getpid()))
    time.sleep(600)


def where() -> str:
    return str(ray.get_runtime_context().get_node_id())


@pytest.mark.usefixtures("connected")
def test_calls_give_what_they_returned_or_why_they_did_not(tmp_path: Path) -> None:
    first, second = alive_nodes()
    here, there, alive, refused, unknown = answers(
        [
            Call(first, where),
            Call(second, where),
            Call(second, die_once, (tmp_path / "died",)),
            Call(second, int, ("seven",)),
            Call("ab" * 28, where),
        ],
        limit_s=120,
    )
    assert (here, there, alive) == (first, second, "alive")
    assert isinstance(refused, ValueError)
    assert isinstance(unknown, ray.exceptions.RayError)


@pytest.mark.usefixtures("connected")
def test_a_call_that_does_not_answer_leaves_no_process_behind(tmp_path: Path) -> None:
    started, limit_s = tmp_path / "started", 3.0
    while not started.exists():
        # On a busy machine, the process may not even start in time.
        limit_s *= 2
        (silent,) = answers([Call(next(iter(alive_nodes())), hang, (started,))], limit_s)
        assert isinstance(silent, TimeoutError)
        assert limit_s < 100
    wait_until(lambda: not psutil.pid_exists(int(started.read_text())))


@pytest.mark.usefixtures("connected")
@pytest.mark.skipif(torch.cuda.is_available(), reason="the offered GPUs are none")
def test_doctor_reports_gpus_that_ray_offers_and_torch_lacks() -> None:
    gpus = of(look_around(None), "GPU")
    assert gpus.pop("none") == "ok"
    ((found, level),) = gpus.items()
    assert found.startswith("Ray offers 2, but torch ")
    assert level == "error"


@pytest.mark.usefixtures("connected")
def test_a_run_is_refused_if_a_node_cannot_read_its_data(small_yaml: Path) -> None:
    require_readable(load_config(str(small_yaml)))
    config = load_config(str(small_yaml), ["model.weights=/nowhere/w.safetensors"])
    message = (
        r"^node .+ cannot read /nowhere/w\.safetensors: No such file or directory; put the data"
    )
    with pytest.raises(UserError, match=message):
        require_readable(config)


def test_the_doctor_command_prints_failures_and_exits_with_1(
    cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    ray.shutdown()
    assert fedvsr("doctor", "--address", cluster.address) == 1
    lines = capsys.readouterr().out.splitlines()
    (torchvision,) = [line for line in lines if line.startswith("torchvision")]
    assert "FAIL" in torchvision
    assert "0.0.1" in torchvision
    assert not ray.is_initialized()
