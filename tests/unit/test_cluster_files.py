"""The files of cluster/, each checked by the schema of the program that reads it."""

from __future__ import annotations

import copy
import json
import mmap
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any, Literal

import jsonschema
import pytest
import ray
import typer
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.scripts import scripts

from fedvsr import cli
from fedvsr.config import load_config

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
METRICS = {
    *("ray_fedvsr_round", "ray_fedvsr_loss", "ray_fedvsr_psnr_db", "ray_fedvsr_step_seconds"),
    *("ray_fedvsr_slot_utilisation", "ray_fedvsr_faults_total"),
}


def read(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def ray_start_options(line: str) -> dict[str, str]:
    """The options of a `ray start` line, parsed by Ray itself."""
    words = shlex.split(line[line.index("ray start") :])[2:]
    context = scripts.start.make_context("start", list(words))
    given = {word.partition("=")[0] for word in words}
    return {name: context.params[name[2:].replace("-", "_")] for name in given}


def test_ray_accepts_onprem_yaml() -> None:
    config = read("onprem.yaml")
    validate_config(prepare_config(copy.deepcopy(config)))
    assert prepare_config(copy.deepcopy(config))["max_workers"] == 3
    with pytest.raises(jsonschema.ValidationError, match="head_start_ray_comands"):
        validate_config(prepare_config({**config, "head_start_ray_comands": []}))


def test_ray_knows_the_options_in_onprem_yaml() -> None:
    config = read("onprem.yaml")
    head = ray_start_options(config["head_start_ray_commands"][-1])
    assert head["--dashboard-host"] == "127.0.0.1"
    assert head["--num-gpus"] == 4
    worker = ray_start_options(config["worker_start_ray_commands"][-1])
    assert worker["--num-gpus"] == 4
    for role in ("head", "worker"):
        assert "RAY_AUTH_MODE=token" in config[f"{role}_start_ray_commands"][-1]
    with pytest.raises(Exception, match="No such option"):
        ray_start_options("ray start --hed")


def test_the_slurm_script_parses_and_ray_knows_its_options() -> None:
    path = CLUSTER / "slurm.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text().replace("\\\n", " ")
    lines = [line.strip() for line in text.splitlines() if line.strip().startswith("ray start")]
    options = [ray_start_options(re.sub(r'"\$[^"]*"', "1", line)) for line in lines]
    assert [o.get("--include-dashboard") for o in options] == [False, None]
    directives = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(.*))?$", text, re.MULTILINE))
    assert {"nodes", "ntasks-per-node", "gpus-per-node", "time", "signal"} <= set(directives)
    assert directives["ntasks-per-node"] == "1"


# The part of KubeRay's ray.io/v1 that our files use. The files were checked once, strictly, against
# the custom resource definitions themselves (cluster/README.md). The names of fields are those of
# KubeRay 1.7.0: ray-operator/apis/ray/v1/{rayjob,raycluster}_types.go.

KUBERAY = {
    "spec of a RayJob": (
        *("activeDeadlineSeconds", "backoffLimit", "clusterSelector", "deletionStrategy"),
        *("entrypoint", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources", "jobId"),
        *("managedBy", "metadata", "preRunningDeadlineSeconds", "rayClusterSpec"),
        *("runtimeEnvYAML", "shutdownAfterJobFinishes", "submissionMode", "submitterConfig"),
        *("submitterPodTemplate", "suspend", "ttlSecondsAfterFinished"),
    ),
    "spec of a RayCluster": (
        *("authOptions", "autoscalerOptions", "enableInTreeAutoscaling", "headGroupSpec"),
        *("gcsFaultToleranceOptions", "headServiceAnnotations", "historyServerOptions"),
        *("managedBy", "networkPolicy", "rayVersion", "suspend", "tlsOptions", "upgradeStrategy"),
        "workerGroupSpecs",
    ),
    "authOptions": ("enableK8sTokenAuth", "mode", "secretName"),
    "headGroupSpec": (
        *("enableIngress", "headService", "ingressOptions", "labels", "rayStartParams"),
        *("resources", "serviceType", "template"),
    ),
    "workerGroupSpecs": (
        *("groupName", "idleTimeoutSeconds", "labels", "maxReplicas", "minReplicas", "numOfHosts"),
        *("priority", "rayStartParams", "replicas", "resources", "scaleStrategy", "suspend"),
        "template",
    ),
}
# What the operator refuses with SidecarMode (ray-operator/controllers/ray/utils/validation.go).
NOT_WITH_SIDECAR = {"clusterSelector", "submitterConfig", "submitterPodTemplate"}


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, alias_generator=to_camel)


class Meta(Strict):
    name: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=47)
    generate_name: str | None = Field(None, pattern=r"^[a-z0-9]([-a-z0-9]*)$", max_length=40)


class Port(Strict):
    container_port: int
    name: str


class Variable(Strict):
    name: str
    value: str


Amounts = dict[Literal["cpu", "memory", "nvidia.com/gpu"], str]


class Resources(Strict):
    limits: Amounts
    requests: Amounts


class Mount(Strict):
    name: str
    mount_path: str


class Container(Strict):
    name: str
    image: str
    ports: list[Port] = []
    env: list[Variable] = []
    resources: Resources
    volume_mounts: list[Mount] = []


class Claim(Strict):
    claim_name: str


class Volume(Strict):
    name: str
    persistent_volume_claim: Claim


class PodSpec(Strict):
    containers: list[Container] = Field(min_length=1)
    volumes: list[Volume] = []
    node_selector: dict[str, str] = {}


class Template(Strict):
    spec: PodSpec


class Head(Strict):
    service_type: Literal["ClusterIP", "NodePort", "LoadBalancer"] = "ClusterIP"
    ray_start_params: dict[str, str] = {}
    template: Template


class Workers(Strict):
    group_name: str
    replicas: int
    min_replicas: int
    max_replicas: int
    ray_start_params: dict[str, str] = {}
    template: Template


class Auth(Strict):
    mode: Literal["disabled", "token"]


class ClusterSpec(Strict):
    ray_version: str
    auth_options: Auth
    head_group_spec: Head
    worker_group_specs: list[Workers]


class JobSpec(Strict):
    entrypoint: str
    submission_mode: Literal["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]
    backoff_limit: int
    pre_running_deadline_seconds: int
    shutdown_after_job_finishes: bool
    ttl_seconds_after_finished: int
    runtime_env: str = Field(alias="runtimeEnvYAML")
    ray_cluster_spec: ClusterSpec


class RayCluster(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayCluster"]
    metadata: Meta
    spec: ClusterSpec


class RayJob(Strict):
    api_version: Literal["ray.io/v1"]
    kind: Literal["RayJob"]
    metadata: Meta
    spec: JobSpec


def test_the_kubernetes_files_fit_kuberay() -> None:
    cluster = RayCluster.model_validate(read("kuberay/raycluster.yaml"))
    job = RayJob.model_validate(read("kuberay/rayjob.yaml"))
    assert job.spec.ray_cluster_spec == cluster.spec, "only the experiment makes the files differ"
    assert cluster.spec.auth_options.mode == "token"
    assert cluster.spec.head_group_spec.service_type == "ClusterIP", "reached from within alone"
    for group in (cluster.spec.head_group_spec, *cluster.spec.worker_group_specs):
        (container,) = group.template.spec.containers
        assert container.resources.limits == container.resources.requests
        gpus = container.resources.limits.get("nvidia.com/gpu", "0")
        assert group.ray_start_params["num-gpus"] == gpus
        line = " ".join(f"--{key}={value}" for key, value in group.ray_start_params.items())
        ray_start_options(
            "ray start " + line.replace("disable-usage-stats=true", "disable-usage-stats")
        )
        volumes = {volume.name for volume in group.template.spec.volumes}
        assert {mount.name for mount in container.volume_mounts} <= volumes
    typo = read("kuberay/rayjob.yaml")
    typo["spec"]["entryPoint"] = typo["spec"].pop("entrypoint")
    with pytest.raises(ValidationError, match="entryPoint"):
        RayJob.model_validate(typo)


def test_kuberay_knows_every_field_of_the_files() -> None:
    job = read("kuberay/rayjob.yaml")["spec"]
    for cluster in (read("kuberay/raycluster.yaml")["spec"], job["rayClusterSpec"]):
        assert cluster.keys() <= set(KUBERAY["spec of a RayCluster"])
        assert cluster["authOptions"].keys() <= set(KUBERAY["authOptions"])
        assert cluster["headGroupSpec"].keys() <= set(KUBERAY["headGroupSpec"])
        for group in cluster["workerGroupSpecs"]:
            assert group.keys() <= set(KUBERAY["workerGroupSpecs"])
        # Else the operator refuses a RayJob: it supports no other kind of token there.
        assert "enableK8sTokenAuth" not in cluster["authOptions"]
    assert job.keys() <= set(KUBERAY["spec of a RayJob"])


def test_the_kubernetes_job_may_be_submitted_from_the_heads_pod() -> None:
    job = read("kuberay/rayjob.yaml")
    job["spec"]["submissionMode"] = "SidecarMode"
    RayJob.model_validate(job)
    assert not job["spec"].keys() & NOT_WITH_SIDECAR
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head.get("restartPolicy", "Never") == "Never"
    text = (CLUSTER / "kuberay" / "rayjob.yaml").read_text()
    assert "SidecarMode" in text, "the file says when to use it"


def test_the_command_of_the_kubernetes_job_parses() -> None:
    words = shlex.split(read("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    assert words[:4] == ["python", "-m", "fedvsr", "run"]
    parse(words[3:])
    load_config(words[4], [words[i + 1] for i, word in enumerate(words) if word == "--set"])


INSTRUCTIONS = {"FROM", "RUN", "WORKDIR", "COPY", "ARG", "USER", "ENV", "CMD"}


def test_the_image_is_built_from_existing_files() -> None:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    steps = [line.split(None, 1) for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    assert {name for name, _ in steps} == INSTRUCTIONS
    assert steps[0][0] == "FROM"
    assert [value for name, value in steps if name == "USER"] == ["ray"], "not as root"
    sources = {s for name, value in steps if name == "COPY" for s in value.split()[:-1]}
    for source in sources:
        assert (ROOT / source).exists(), source
    sent = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert sources == {line[1:] for line in sent if line.startswith("!")}
    assert json.loads(next(value for name, value in steps if name == "CMD")) == ["fedvsr", "--help"]
    runs = " ".join(value for name, value in steps if name == "RUN")
    extras = re.findall(r"\.\[([a-z,]+)\]", runs)[0].split(",")
    setup = (ROOT / "setup.cfg").read_text()
    assert all(f"\n{extra} =\n" in setup for extra in extras)
    assert re.search(r"pip install .*-c constraints\.txt '\.\[", runs)


def test_the_image_has_the_ray_that_kuberay_is_told() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    (version,) = re.findall(r"^ray==(\S+)$", constraints, re.MULTILINE)
    for name in ("kuberay/raycluster.yaml", "kuberay/rayjob.yaml"):
        assert re.findall(r'rayVersion: "(.*)"', (CLUSTER / name).read_text()) == [version]


def test_the_dashboard_draws_the_documented_metrics() -> None:
    (job,) = read("prometheus.yml")["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/tmp/ray/prom_metrics_service_discovery.json"]}]
    described = set(re.findall(r"`(ray_\w+)`", (CLUSTER / "monitoring.md").read_text()))
    assert described == METRICS
    dashboard = json.loads((CLUSTER / "grafana.json").read_text())
    drawn = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    assert {name for expr in drawn for name in re.findall(r"ray_\w+", expr)} == METRICS
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(drawn) == 6


def parse(words: list[str]) -> None:
    """Parse a command of fedvsr without running it."""
    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    commands[words[0]].make_context(words[0], words[1:])


@pytest.mark.parametrize(
    "document", ["cluster/README.md", "cluster/monitoring.md", "docs/how-to/run-on-a-cluster.md"]
)
def test_commands_in_the_documents_parse(document: str) -> None:
    text = (ROOT / document).read_text()
    blocks = re.findall(r"^```\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    ours = [shlex.split(line, comments=True) for line in lines if line.startswith("fedvsr ")]
    for words in ours:
        parse(words[1:])
    assert ours or document == "cluster/monitoring.md"
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (ROOT / document).parent.joinpath(target).exists(), target


def test_every_cluster_asks_for_a_token_in_rays_own_words() -> None:
    texts = {path: path.read_text() for path in CLUSTER.rglob("*") if path.is_file()}
    assert (
        "export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$token" in texts[CLUSTER / "slurm.sbatch"]
    )
    texts |= {path: path.read_text() for path in (ROOT / "docs" / "how-to").glob("*.md")}
    named = {name for text in texts.values() for name in re.findall(r"\bRAY_AUTH_\w+", text)}
    assert named == {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    with open(ray._raylet.__file__, "rb") as file:
        library = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if library.find(b"RAY_AUTH_MODE") < 0:
        pytest.skip("this release of Ray has no token authentication")
    assert all(library.find(name.encode() + b"\0") >= 0 for name in named)


def test_no_server_listens_on_every_address() -> None:
    for path in [p for p in CLUSTER.rglob("*") if p.is_file()]:
        assert "0.0.0.0" not in path.read_text(), path
