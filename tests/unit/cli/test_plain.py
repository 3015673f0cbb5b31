"""Text of users is printed as it is, on any terminal."""

from __future__ import annotations

import ast
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table

import fedvsr as package
from fedvsr.cli import common
from fedvsr.cli.common import plain_console, say
from fedvsr.cli.views import FramesView, PreparationView, follow
from fedvsr.federation.executors import Fault
from fedvsr.runs.events import RoundRecorded, RunStarted
from tests.conftest import moving_texture
from tests.unit.cli.test_cli import fedvsr
from tests.unit.data.clips import write_store
from tests.unit.report.synthetic import write_run

# Markup, an emoji's code, and markup that does not close, which rich refuses.
NAME = "[bold]a[/bold] :smile: [/x] \\[b]"


def markup_in(tree: ast.AST) -> list[int]:
    """Lines of a module that may print text with markup: consoles and columns of its own."""
    lines = list[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"Console", "TextColumn"}:
            lines.append(node.lineno)
        if isinstance(node, ast.keyword) and node.arg in {"markup", "emoji"}:
            lines.append(node.lineno)
        if isinstance(node, ast.Attribute) and node.attr in {"from_markup", "secho", "rprint"}:
            lines.append(node.lineno)
        if isinstance(node, ast.ImportFrom) and node.module in {"rich", "rich.markup"}:
            lines += [node.lineno for alias in node.names if alias.name != "filesize"]
    return lines


def test_one_module_makes_consoles_and_columns() -> None:
    root = Path(str(package.__file__)).parent
    found = {
        str(path.relative_to(root)): lines
        for path in root.rglob("*.py")
        if (lines := markup_in(ast.parse(path.read_text())))
    }
    assert list(found) == ["cli/common.py"], found
    for line in (
        "Console()",
        "x.print(a, markup=True)",
        "Text.from_markup(a)",
        "TextColumn(a)",
        "from rich import print",
    ):
        assert markup_in(ast.parse(line)), line


def test_lines_tables_and_bars_show_names_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(NAME)
    table = Table(NAME, title=NAME)
    table.add_row(NAME, style="bold")
    common.print_wide(table)
    assert capsys.readouterr().out.count(NAME) == 4
    # In a terminal.
    terminal = plain_console(width=200)
    terminal.file, terminal._force_terminal = io.StringIO(), True
    with PreparationView(terminal) as cutting:
        cutting(NAME, 1, 2)
    with FramesView(terminal) as frames:
        frames.say(NAME)
        frames.begin(NAME)(1, 2)
    started = RunStarted(NAME, 0, 1, 1, 1, "CPU", (NAME,))
    fault = Fault(1, 0, "raised", NAME)
    follow([started, fault], terminal)
    with Live(table, console=terminal):
        pass
    assert terminal.file.getvalue().count(NAME) >= 9


@pytest.mark.parametrize("terminal", [False, True])
def test_lost_uploads_are_shown_in_the_round_that_lost_them(terminal: bool) -> None:
    console = plain_console(width=200)
    console.file, console._force_terminal = io.StringIO(), terminal
    lost = [
        RoundRecorded(i, [3, 1, 2], None if n == 3 else 0.1, [], 1.0, num_upload_failures=n)
        for i, n in enumerate((0, 2, 3), 1)
    ]
    follow([RunStarted("a", 0, 3, 1, 4, "CPU", ()), *lost], console)
    text = console.file.getvalue()
    assert text.count("uploads lost") == (1 if terminal else 2)
    assert text.count("2 of 3") == 1
    assert text.count("3 of 3, nothing to aggregate") == 1
    assert "0 of 3" not in text


def test_commands_show_names_of_runs_clips_and_labels_as_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "[bold]:smile:[x]"
    folder = write_run(tmp_path / "r", name, clips=[name, "b"], status="failed", done=1)
    assert fedvsr("show", str(folder)) == 0
    assert capsys.readouterr().out.count(name) >= 3, "its id, a clip, its folder"
    assert fedvsr("list", "--out", str(tmp_path / "r")) == 0
    assert name in capsys.readouterr().out
    write_store(tmp_path / name, {name: moving_texture(2, 8, 8)}, 4)
    assert fedvsr("data", "info", str(tmp_path / name), "--clips") == 0
    assert name in capsys.readouterr().out
    assert fedvsr("data", "verify", str(tmp_path / name)) == 0
    assert name in capsys.readouterr().out
    for command in (["show", name], ["config", name], ["config", "demo", "--set", name]):
        assert fedvsr(*command) == 2
        assert name in capsys.readouterr().err


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_terminal_without_a_letter_shows_its_number(tmp_path: Path, encoding: str) -> None:
    name = "caf\xe9-\u65e5\u672c"
    write_run(tmp_path, name, clips=[name, "b"])
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "LC_ALL": "C", "COLUMNS": "120"}
    for command, code in (["list", "--out", "."], 0), (["show", name], 0), (["show", name * 2], 2):
        done = subprocess.run(
            [sys.executable, "-m", "fedvsr", *command],
            env=environment, cwd=tmp_path, capture_output=True, text=True, encoding=encoding,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        assert "\\u65e5\\u672c" in done.stdout + done.stderr
