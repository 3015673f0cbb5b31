"""What Tab completes, also in a real bash that has sourced the script of `--show-completion`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fedvsr.cli import app
from fedvsr.lookup import names
from tests.unit.report.synthetic import write_run


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for i, name in enumerate(("first", "second")):
        config = write_run(tmp_path / "results", name) / "config.yaml"
        config.touch()
        os.utime(config, (1_700_000_000 + i, 1_700_000_000 + i))
    write_run(tmp_path / "other", "third")
    (tmp_path / "results" / "sweeps" / "alpha").mkdir(parents=True)
    (tmp_path / "results" / "sweeps" / "alpha" / "sweep.yaml").touch()
    (tmp_path / "mine.yaml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def offered(*words: str) -> list[str]:
    """What a shell is offered for the last of the words."""
    line = {"COMP_WORDS": " ".join(["fedvsr", *words]), "COMP_CWORD": str(len(words))}
    line["_FEDVSR_COMPLETE"] = "complete_bash"
    done = CliRunner().invoke(app, [], env=line, prog_name="fedvsr")
    assert done.stderr == ""
    return done.stdout.split()


RUNS = ["latest", "second", "first"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["sh"], ["show"]),
        (["compa"], ["compare"]),
        (["compare", "fi"], ["first"]),
        (["compare", "first", "sec"], ["second"]),
        (["show", "--out", "other", ""], ["latest", "third"]),
        (["upscale", "a.mp4", "--checkpoint", "l"], ["latest"]),
        (["upscale", "a.mp4", "--results", "other", "--checkpoint", "t"], ["third"]),
        (["run", "dem"], ["demo", "demo_degradations", "demo_fedavg"]),
        (["run", "mi"], ["mine.yaml"]),
        (["list", "--model", ""], names("fedvsr.models")),
        (["list", "--algorithm", "fedpro"], ["fedprox"]),
        (["list", "--status", "fin"], ["finished"]),
        (["tune-report", ""], ["alpha"]),
        # Paths are left to the shell.
        (["show", "./"], []),
        (["show", "results/f"], []),
        (["run", "../"], []),
        # Nothing to offer.
        (["show", "--out", "missing", ""], []),
        (["show", "--out", "mine.yaml", ""], []),
    ],
)
def test_a_word_is_completed(words: list[str], expected: list[str], folder: Path) -> None:
    assert offered(*words) == expected


TAKE_RUNS = ["show", "watch", "tag", "note", "rm", "archive", "compare", "report"]
TAKE_RUNS += ["export", "evaluate"]


@pytest.mark.parametrize("command", TAKE_RUNS)
def test_runs_are_offered_wherever_one_is_asked(command: str, folder: Path) -> None:
    assert offered(command, "") == RUNS


def test_bash_completes_by_the_script_that_is_shown(folder: Path) -> None:
    """The script calls `fedvsr` by its name, as the shell finds it."""
    command = folder / "bin" / "fedvsr"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m fedvsr "$@"\n')
    command.chmod(0o755)
    script = """
        source <(fedvsr --show-completion)
        complete -p fedvsr
        COMP_WORDS=(fedvsr show '') COMP_CWORD=2
        _fedvsr_completion fedvsr
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    path = f"{command.parent}:{os.environ['PATH']}"
    root = Path(__file__).parents[3]
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    registered, *words = done.stdout.splitlines()
    assert registered.endswith("-F _fedvsr_completion fedvsr")
    assert words == RUNS
