"""Each command in the documentation is one that the command line takes, with settings that exist.

Commands that `test_run.py` does not run are parsed as well.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from fedvsr.cli import app
from fedvsr.config import load_config
from fedvsr.settings import presets
from fedvsr.tuning.sweep import expand, load_sweep

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "cluster" / "README.md"]
PAGES += [page for page in (ROOT / "docs").rglob("*.md") if page.parent.name != "design"]
NEEDS = {
    "cluster",
    "gpu",
    "REDS, Vid4, Kinetics-400",
    "released weights",
    "a fresh clone",
    "a minute or more",
    "the file of this page",
}
NEEDS |= {f"a {what} that was stopped" for what in ("run", "sweep")}
NEEDS |= {"a run", "a run that met a fault", "a run under way", "py-spy, a run under way"}
# Up to a redirection or `&` of the shell. "fedvsr with" begins a line that a run prints.
COMMAND = re.compile(r" *(?:\$ |srun [-=\w ]*)?(?:\.venv/bin/)?((?:fedvsr(?! with )|make) [^>&]*)")


def commands() -> Iterator[tuple[str, list[str]]]:
    """The page of each `fedvsr` or `make` command, with the command, and its words."""
    for page in PAGES:
        text = page.read_text()
        for block in re.finditer(r"^ *```(?:sh|console)?\n(.*?)^ *```", text, flags=re.M | re.S):
            for line in block[1].splitlines():
                command = COMMAND.match(line)
                # Not the generated page's synopses, nor lines that end in "...".
                if command and "[" not in command[1].split("--set")[0] and "..." not in command[1]:
                    words = shlex.split(command[1], comments=True)
                    yield f"{page.relative_to(ROOT)}: {' '.join(words)}", words


FOUND = list(commands())


@pytest.mark.parametrize(("where", "words"), FOUND, ids=[where for where, _ in FOUND])
def test_documented_commands_and_settings_exist(where: str, words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.M)
        assert words[1] in targets, where
        return
    command, rest = typer.main.get_command(app), words[1:]
    name = "fedvsr"
    with command.make_context(name, [*rest], resilient_parsing=True) as context:
        while hasattr(command, "commands") and rest and rest[0] in command.commands:
            name, command, rest = rest[0], command.commands[rest[0]], rest[1:]
        known = rest[0].startswith("-") if rest else True
        assert not hasattr(command, "commands") or known, f"{where}: no command {rest[0]}"
        if not hasattr(command, "commands") and "-h" not in rest:
            given = command.make_context(name, [*rest], parent=context).params
            settings, source = given.get("settings"), given.get("source")
            if name == "run" and source and not source.endswith(".yaml"):
                assert source in presets(), f"{where}: no preset {source}"
            examples = {"algorithm.name=./fedexp.py", "model.name=./conv3d.py"}
            if settings and source in presets() and not examples & set(settings):
                load_config(source, settings)


def test_blocks_name_only_known_needs_and_existing_tests() -> None:
    for page in PAGES:
        text = page.read_text()
        for need in re.findall(r"<!-- needs: (.+) -->", text):
            assert need in NEEDS, f"{page}: {need}"
        for file in re.findall(r"<!-- tested: (.+) -->", text):
            assert (ROOT / file).exists(), f"{page}: {file}"


def test_files_of_the_tutorial_are_valid(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tutorial.md").read_text()
    written = re.findall(r"^Write `([\w.]+)`.*?^```yaml\n(.*?)^```", text, flags=re.M | re.S)
    for name, yaml in written:
        (tmp_path / name).write_text(yaml)
    assert [name for name, _ in written] == ["mine.yaml", "sweep.yaml"]
    assert load_config(str(tmp_path / "mine.yaml")).data.partition == "dirichlet"
    assert len(expand(load_sweep(tmp_path / "sweep.yaml"))) == 4
