"""The documentation's commands and Python are run, page by page, in a folder of what they name.

Settings are added that make a run short. A block is not run after `<!-- needs: ... -->`, which
names what the tests do not have, or after `<!-- tested: FILE -->`, whose tests run its commands. A
line is not run if it gives `--address`, or if its comment says what it needs.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from typer.testing import CliRunner

from fedvsr.cli import app
from tests.conftest import moving_texture, write_video
from tests.docs.test_commands import PAGES

ROOT = Path(__file__).parents[2]
# Words of a comment that says what its line needs. tests/integration/test_resume.py resumes runs.
NEEDED = ("cluster", "released weights", "another machine", "after Ctrl-C")
SHORT = {
    "federation.num_rounds": "1",
    "federation.clients_per_round": "2",
    "local.steps": "1",
    "evaluation.max_frames": "2",
    "evaluation.crop": "32",
}
# What a page writes, and what the folder has.
STANDS_FOR = {
    "--crop 400,120,96 --clip 011": "--crop 8,8,24 --clip texture-009",
    "--clip-frames 100": "--clip-frames 20",
}


def blocks(page: Path) -> Iterator[tuple[str, str, list[str]]]:
    """The language of each block of code, the line of text before it, and its lines."""
    before, block, language = "", None, ""
    for line in page.read_text().splitlines():
        fence = re.match(r" *```(\w*)", line)
        if fence and block is None:
            language, block = fence[1], list[str]()
        elif fence and block is not None:
            yield language, before, block
            before, block = "", None
        elif block is not None:
            block.append(line)
        elif line.strip():
            before = line


def is_run(before: str) -> bool:
    return not re.match(r" *<!-- (needs|tested): .+ -->", before)


def lines(block: list[str]) -> Iterator[str]:
    for line in block:
        command, _, comment = line.partition(" #")
        marked = "--address" in command or any(word in comment for word in NEEDED)
        if command.strip() and not marked and not command.startswith("make "):
            yield command.strip().replace(".venv/bin/", "")


def runs_something(page: Path) -> bool:
    filled = [(lang, before) for lang, before, block in blocks(page) if any(lines(block))]
    return any(lang in ("", "sh", "python") and is_run(before) for lang, before in filled)


# tests/unit/report/test_reading.py runs the first page, test_examples.py the others.
ELSEWHERE = ("read-results.md", "add-a-network.md", "add-an-algorithm.md")
RUN = [page for page in PAGES if page.name not in ELSEWHERE and runs_something(page)]


@pytest.fixture(scope="module")
def folder(small_yaml: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of what the pages name: videos, frames, a finished run, a sweep's file."""
    folder = tmp_path_factory.mktemp("reader")
    frames = moving_texture(num_frames=75, height=128, width=128)
    videos = [
        "a.mp4",
        "b.mp4",
        "video.mp4",
        "videos/alice/a.mp4",
        "videos/alice/b.mp4",
        "videos/bob/c.mp4",
    ]
    for i, name in enumerate(videos):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, frames[i : 66 + i])
    for name, step in (("GT", 1), ("sharp_bicubic", 4)):
        for i in range(4):
            picture = folder / "REDS4" / name / "000" / f"{i:08d}.png"
            picture.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frames[i, ::step, ::step]).save(picture)
    (folder / ".venv").symlink_to(sys.prefix)
    (folder / "tune_configs").symlink_to(ROOT / "tune_configs")
    done = CliRunner().invoke(
        app, ["run", str(small_yaml), "--executor", "serial", "--out", str(folder / "results")]
    )
    assert done.exit_code == 0, done.output
    return folder


@pytest.mark.parametrize("page", RUN, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_do_what_the_page_says(
    page: Path, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "here"
    shutil.copytree(folder, here, symlinks=True)
    monkeypatch.chdir(here)
    # The demo's clips are cut into it.
    cache = folder.parent / "cache"
    for language, before, block in blocks(page):
        named = re.search(r"`([\w.]+\.yaml)`", before)
        if language == "yaml" and named:
            (here / named[1]).write_text("\n".join(block))
        if language == "python" and is_run(before):
            exec(compile("\n".join(block), str(page), "exec"), {})
        if language in ("", "sh") and is_run(before):
            for line in lines(block):
                run_line(line, here, cache)


def run_line(line: str, here: Path, cache: Path) -> None:
    (run,) = (here / "results").glob("small-*")
    for name, value in {**STANDS_FOR, "RUN": run.name}.items():
        line = line.replace(name, value)
    command, _, target = line.partition(" > ")
    if not command.startswith("fedvsr "):
        done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        return
    words = shlex.split(command)[1:]
    if words[0] == "run":
        for name, value in {**SHORT, "data.cache_dir": str(cache)}.items():
            words += ["--set", f"{name}={value}"]
        words += [] if "--executor" in words else ["--executor", "serial"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"
    if target:
        Path(target.strip()).write_text(result.stdout)
