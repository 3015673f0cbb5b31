"""Two pages add an algorithm and a network: their files are written as the pages say, and run."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_run import ROOT, SHORT, blocks

PAGES = [ROOT / "docs" / "how-to" / f"add-{name}.md" for name in ("an-algorithm", "a-network")]


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    for name in ("fedvsr", "tests", "docs"):
        ignored = shutil.ignore_patterns("__pycache__", "images")
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    commands = []
    for language, before, block in blocks(page):
        named = re.search(r"`((?:fedvsr|tests)/[\w/]+\.py)`", before)
        if language == "python" and named:
            (tmp_path / named[1]).write_text("\n".join(block) + "\n")
        elif before == "<!-- needs: the file of this page -->":
            commands += block
    # Those measure seconds.
    commands = [line for line in commands if not line.startswith("make ")]
    assert len(commands) >= 3
    settings = "".join(f" --set {name}={value}" for name, value in SHORT.items())
    bin_folder = Path(sys.executable).parent
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path),
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
    }
    for line in commands:
        command = line + settings if line.startswith("fedvsr run") else line
        command = re.sub(r"^(fedvsr|pytest)\b", rf"{sys.executable} -m \1", command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    files = [str(path.relative_to(tmp_path)) for path in (tmp_path / "fedvsr").rglob("*.py")]
    (new,) = (name for name in files if not (ROOT / name).exists())
    if importlib.util.find_spec("ruff"):
        for line in (f"ruff check {new}", f"ruff format --check --diff {new}"):
            command = [sys.executable, "-m", *line.split()]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
