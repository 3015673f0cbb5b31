"""Jobs on a real Ray head, which the tests start and which asks for a token."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import ray
import yaml

from fedvsr.config import load_config
from fedvsr.environment import git_commit
from fedvsr.records import read_run, read_table
from tests.integration.commands import endless_and_idle, heed_ctrl_c
from tests.integration.equality import assert_equal_runs
from tests.integration.head import Head, can_hide_folders, local_head, node_without
from tests.integration.running import run_serially
from tests.unit.runs.test_logged import in_tensorboard
from tests.unit.test_plugins import write

pytestmark = [
    pytest.mark.ray,
    pytest.mark.full,
    pytest.mark.skipif(
        not hasattr(ray.exceptions, "AuthenticationError"),
        reason="this release of Ray has no token authentication",
    ),
]


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    with local_head() as running:
        yield running


@dataclass(frozen=True)
class Submitted:
    job_id: str
    source: Path
    done: subprocess.CompletedProcess[str]


@pytest.fixture(scope="module")
def finished(head: Head, small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    """An experiment with a method of one's own, submitted to the head that is found, to its end."""
    source = tmp_path_factory.mktemp("job") / "quick.yaml"
    settings = yaml.safe_load(small_yaml.read_text())
    write(source.parent, "mean")
    settings["algorithm"] = {"name": "./mean.py"}
    settings["federation"]["num_rounds"] = 2
    settings["logging"] = {"tensorboard": True}
    source.write_text(yaml.safe_dump(settings))
    done = head.fedvsr("submit", str(source), "--follow")
    return Submitted(job_id_of(done.stdout), source, done)


def job_id_of(printed: str) -> str:
    found = re.search(r"^submitted (\S+)$", printed, re.MULTILINE)
    assert found, printed
    return found[1]


def test_a_job_is_followed_to_its_end(head: Head, finished: Submitted) -> None:
    done = finished.done
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^package: fedvsr \d+\.\d [kM]B, plugins \d+ bytes, run.yaml ", done.stdout)
    assert re.search(r"^round 2/2  clients \d,\d  loss 0", done.stdout, re.MULTILINE)
    assert done.stderr == ""
    listed = head.fedvsr("jobs", "--address", head.address)
    assert re.search(rf"{finished.job_id} +SUCCEEDED +0 ", listed.stdout), listed.stdout
    logs = head.fedvsr("logs", finished.job_id, "--address", head.address)
    assert "round 2/2" in logs.stdout
    assert logs.stdout in done.stdout, "the log holds more than was followed"


def test_a_jobs_results_equal_those_of_a_local_run(
    head: Head, finished: Submitted, tmp_path: Path
) -> None:
    out = tmp_path / "results"
    fetched = head.fedvsr("fetch", "latest", "--out", str(out), "--checkpoints")
    assert fetched.returncode == 0, fetched.stderr
    (folder,) = out.iterdir()
    there = head.folder / "fedvsr-results" / folder.name
    assert there.is_dir()
    files = {p.relative_to(there) for p in there.rglob("*") if p.is_file() and p.name[0] != "."}
    assert {p.relative_to(folder) for p in folder.rglob("*") if p.is_file()} == files
    for name in files:
        assert (folder / name).read_bytes() == (there / name).read_bytes(), name
    assert f"{len(files)} files" in fetched.stdout

    assert (folder / "plugins" / "algorithm" / "mean.py").is_file()
    config = load_config(str(finished.source))
    assert_equal_runs(run_serially(config, tmp_path / "serial"), folder)
    psnr_db = read_table(folder, "rounds")["psnr_db"].to_pylist()
    curve = in_tensorboard(folder)["test/held-out/psnr_db"]
    assert [round_idx for round_idx, _ in curve] == [0, 1, 2]
    assert [value for _, value in curve] == pytest.approx(psnr_db)
    commit = read_run(folder)["git_commit"]  # type: ignore[index]
    assert commit == git_commit(), "the source was shipped without its history"


def test_the_token_is_in_no_file_and_no_output(
    head: Head, finished: Submitted, tmp_path: Path
) -> None:
    done = head.fedvsr("logs", finished.job_id, "--address", head.address)
    printed = finished.done.stdout + finished.done.stderr + done.stdout
    assert "ray job submit" in printed
    assert head.token not in printed
    folders = [head.folder / "fedvsr-results", *head.ray_folder.glob("session_*/logs")]
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert any(path.name == "config.yaml" for path in files)
    assert any(path.name.startswith("job-driver-") for path in files)
    for path in files:
        # Tables are compressed, so their bytes would not show the token.
        text = str(pq.read_table(path).to_pylist()) if path.suffix == ".parquet" else ""
        assert head.token not in text, path
        assert head.token.encode() not in path.read_bytes(), path
    # What the job server keeps about the job: its environment and its metadata.
    from ray.job_submission import JobSubmissionClient

    client = JobSubmissionClient(head.address, headers={"Authorization": f"Bearer {head.token}"})
    assert head.token not in repr(client.get_job_info(finished.job_id))


def test_a_failed_run_gives_its_exit_code_and_its_reason(head: Head, small_yaml: Path) -> None:
    missing = "data.videos=[/nowhere/clip.mp4]"
    arguments = ["submit", str(small_yaml), "--address", head.address, "--set", missing]
    done = head.fedvsr(*arguments, "--follow")
    assert done.returncode == 2
    assert "error: there is no video /nowhere/clip.mp4 (data.videos)" in done.stdout
    assert re.search(r"FAILED, exit code 2$", done.stdout.strip())
    job_id = job_id_of(done.stdout)
    nothing = head.fedvsr("fetch", job_id, "--address", head.address)
    assert nothing.returncode == 2
    assert f"{job_id} is FAILED and has begun nothing" in nothing.stderr


def test_the_printed_ray_command_submits_the_same_job(
    head: Head, small_yaml: Path, tmp_path: Path
) -> None:
    package = tmp_path / "package"
    arguments = ["submit", str(small_yaml), "--address", head.address, "--package", str(package)]
    arguments += ["--set", "data.videos=[/nowhere/clip.mp4]", "--dry-run"]
    shown = head.fedvsr(*arguments)
    assert shown.returncode == 0, shown.stderr
    assert "submitted" not in shown.stdout
    line = next(
        line.partition(": ")[2] for line in shown.stdout.splitlines() if "ray job submit" in line
    )
    done = subprocess.run(
        line, shell=True, env=head.environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1, "Ray's own command knows no other code"
    assert "error: there is no video /nowhere/clip.mp4 (data.videos)" in done.stdout


def test_ctrl_c_leaves_a_job_running_and_stop_ends_it(
    head: Head, small_yaml: Path, tmp_path: Path
) -> None:
    arguments = ["submit", str(small_yaml), "--address", head.address, "--follow"]
    for key, value in {**endless_and_idle(tmp_path), "name": "endless"}.items():
        arguments += ["--set", f"{key}={value}"]
    following = subprocess.Popen(
        [sys.executable, "-m", "fedvsr", *arguments],
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_ctrl_c,
    )
    assert following.stdout is not None
    printed = ""
    for line in following.stdout:
        printed += line
        if line.startswith("round 1/"):
            break
    following.send_signal(signal.SIGINT)
    rest, errors = following.communicate(timeout=30)
    assert following.returncode == 130
    assert errors == ""
    job_id = job_id_of(printed)
    assert f"{job_id} keeps running" in rest
    assert f"fedvsr logs {job_id} --address {head.address} --follow" in rest
    assert f"fedvsr stop {job_id} --address {head.address}" in rest
    before = head.fedvsr("logs", job_id, "--address", head.address).stdout

    stopped = head.fedvsr("stop", job_id, "--address", head.address)
    assert stopped.returncode == 0, stopped.stderr
    assert f"{job_id}: STOPPED" in stopped.stdout
    after = head.fedvsr("logs", job_id, "--follow", "--address", head.address)
    assert after.returncode == 130
    assert before in after.stdout, "it went on after Ctrl-C"
    again = head.fedvsr("stop", job_id, "--address", head.address)
    assert "had ended already: STOPPED" in again.stdout
    fetched = head.fedvsr("fetch", job_id, "--address", head.address, "--out", "stopped")
    assert fetched.returncode == 0, fetched.stderr
    (folder,) = (head.folder / "stopped").iterdir()
    assert (folder / "rounds.parquet").is_file()


def test_a_missing_or_wrong_token_is_reported_in_one_line(head: Head) -> None:
    (head.folder / "wrong").write_text("x" * 64)
    cases = {
        "asks for a token: set RAY_AUTH_MODE=token": {"RAY_AUTH_MODE": "disabled"},
        "asks for a token: set": {"RAY_AUTH_TOKEN_PATH": "/nowhere"},
        "refuses this token: set": {"RAY_AUTH_TOKEN_PATH": str(head.folder / "wrong")},
    }
    for message, environment in cases.items():
        done = head.fedvsr("jobs", "--address", head.address, **environment)
        assert done.returncode == 2
        assert message in done.stderr
        assert done.stderr.count("\n") == 1


def test_the_address_option_overrides_the_environment(head: Head) -> None:
    wrong = {"RAY_ADDRESS": "127.0.0.1:1", "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:1"}
    assert head.fedvsr("jobs", "--address", head.address, **wrong).returncode == 0
    done = head.fedvsr("jobs", **wrong)
    assert done.returncode == 2
    assert "no Ray job server answers at http://127.0.0.1:1 " in done.stderr


def test_a_second_head_is_refused(head: Head) -> None:
    again = head.fedvsr("cluster", "up")
    assert again.returncode == 2
    assert f"a head runs already, at {head.address}; `fedvsr cluster down` ends it" in again.stderr


def test_the_head_listens_only_on_loopback(head: Head) -> None:
    port = int(head.address.rpartition(":")[2])
    listening = [
        fields[1]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if (fields := line.split())[3] == "0A" and int(fields[1].partition(":")[2], 16) == port
    ]
    assert listening == [f"0100007F:{port:04X}"]


@pytest.mark.skipif(not can_hide_folders(), reason="may not mount")
def test_a_node_that_cannot_read_the_data_is_found(
    head: Head, small_yaml: Path, tmp_path: Path
) -> None:
    arguments = [str(small_yaml), "--address", head.address]
    arguments += ["--set", f"data.cache_dir={tmp_path}"]
    with node_without(head, tmp_path):
        checked = head.fedvsr("doctor", *(arguments[:1] + arguments[3:]))
        assert checked.returncode == 1, checked.stdout
        lines = [line for line in checked.stdout.splitlines() if line.startswith("data ")]
        failed = [line for line in lines if "FAIL" in line]
        assert len(failed) == 1, checked.stdout + checked.stderr
        (line,) = failed
        assert f"data.cache_dir ({tmp_path}): No such file or directory" in line
        refused = head.fedvsr("submit", *arguments, "--follow")
        assert refused.returncode == 2
        message = rf"error: node .+ cannot read data.cache_dir \({tmp_path}\): No such file"
        assert re.search(message, refused.stdout)
        assert "round 0" not in refused.stdout, "it trained in spite of that"
