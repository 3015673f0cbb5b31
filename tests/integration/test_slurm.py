"""cluster/slurm.sbatch with two Ray nodes on this machine, and stand-ins for Slurm's commands."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from fedvsr.records import load_results
from tests.integration.head import REPOSITORY

pytestmark = [pytest.mark.ray, pytest.mark.full]

# Runs one task for each node, all here, and ends them when it is ended, as Slurm does.
SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
pids=()
for ((i = 0; i < SLURM_NNODES; i++)); do SLURM_PROCID=$i "$@" & pids+=($!); done
trap 'kill -TERM "${pids[@]}" 2> /dev/null' TERM EXIT
wait -n || exit 1
wait
"""
SCONTROL = """#!/bin/bash
[[ "$1 $2" == "show hostnames" ]] && echo "${3//,/$'\\n'}"
"""


@pytest.fixture
def slurm(tmp_path: Path) -> Iterator[dict[str, str]]:
    """The environment of a batch job with two nodes."""
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in {"srun": SRUN, "scontrol": SCONTROL}.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "SLURM_"))}
    yield kept | {
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(REPOSITORY),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NODELIST": "localhost,localhost",
        "SLURM_NNODES": "2",
        "SLURM_CPUS_PER_TASK": "1",
        "SLURM_SUBMIT_DIR": str(tmp_path),
        "FEDVSR_PYTHON": sys.executable,
    }
    shutil.rmtree(f"/tmp/ray-{os.getpid()}", ignore_errors=True)


def rays(job_id: str) -> list[str]:
    """Command lines of this job's Ray processes that are alive."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"/tmp/ray-{job_id}" in command:
            commands.append(command[:80])
    return commands


def test_a_stopped_batch_job_leaves_no_process_behind(
    slurm: dict[str, str], small_yaml: Path, tmp_path: Path
) -> None:
    source = tmp_path / "long.yaml"
    settings = yaml.safe_load(small_yaml.read_text())
    settings["federation"]["num_rounds"] = 5000
    source.write_text(yaml.safe_dump(settings))
    script = str(REPOSITORY / "cluster" / "slurm.sbatch")
    job = subprocess.Popen(
        ["bash", script, str(source)],
        env=slurm,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert job.stdout is not None
    printed = ""
    for line in job.stdout:
        printed += line
        if line.startswith("round 1/"):
            assert len(rays(slurm["SLURM_JOB_ID"])) > 2
            # Slurm sends this to the script alone, before the time is up.
            job.send_signal(signal.SIGTERM)
    assert job.wait(60) != 0, printed
    assert "round 1/5000" in printed
    # `fedvsr doctor` has checked both nodes.
    assert re.search(r"^ports +ok +(\S+ \(\S+\)), \1 +all reached", printed, re.MULTILINE), printed
    assert "FAIL" not in printed
    rounds = load_results(tmp_path / "results").rounds
    assert rounds["round_idx"].max() >= 1
    deadline = time.monotonic() + 20
    while rays(slurm["SLURM_JOB_ID"]) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not rays(slurm["SLURM_JOB_ID"])
    assert not list((tmp_path / "results").glob(".ray-token*"))


def test_a_head_that_does_not_start_is_reported(slurm: dict[str, str], tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "srun"
    broken.write_text("#!/bin/bash\necho 'no such partition'\nexit 1\n")
    script = str(REPOSITORY / "cluster" / "slurm.sbatch")
    done = subprocess.run(
        ["bash", script, "demo"], env=slurm, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 1
    assert "no such partition" in done.stdout
    assert "the head did not start" in done.stderr
