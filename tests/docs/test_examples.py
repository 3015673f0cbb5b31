"""Two pages add an algorithm and a network: their files are written as the pages say, and run."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.test_run import ROOT, SHORT, blocks

PAGES = [ROOT / "docs" / "how-to" / f"add-{name}.md" for name in ("an-algorithm", "a-network")]


@pytest.mark.full
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_files_of_a_page_do_what_it_says(page: Path, tmp_path: Path) -> None:
    """In a folder that holds these files alone; the algorithm's run is on Ray."""
    commands, written = [], []
    for language, before, block in blocks(page):
        named = re.search(r"`(\w+\.py)`[^`]*$", before)
        if language == "python" and named:
            (tmp_path / named[1]).write_text("\n".join(block) + "\n")
            written.append(named[1])
        elif before == "<!-- needs: the file of this page -->":
            commands += block
    assert len(written) == 2
    assert [line.split()[:2] for line in commands] == [
        ["pytest", written[1]],
        ["fedvsr", "check"],
        ["fedvsr", "run"],
    ]
    settings = "".join(f" --set {name}={value}" for name, value in SHORT.items())
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for line in commands:
        command = line + settings if line.startswith("fedvsr run") else line
        command = re.sub(r"^(fedvsr|pytest)\b", rf"{sys.executable} -m \1", command)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{line}\n{done.stdout[-4000:]}{done.stderr[-4000:]}"
    (run,) = (tmp_path / "results").iterdir()
    kept = [path.read_bytes() for path in run.glob("plugins/*/*.py")]
    assert kept == [(tmp_path / written[0]).read_bytes()]
    if importlib.util.find_spec("ruff"):
        style = f"--config {ROOT / 'pyproject.toml'} {written[0]}"
        for line in (f"ruff check {style}", f"ruff format --check --diff {style}"):
            command = [sys.executable, "-m", *line.split()]
            done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
            assert done.returncode == 0, done.stdout
