"""Text of users is printed as it is, on any terminal."""

from __future__ import annotations

import ast
import io
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
from rich.live import Live
from rich.table import Table

import fedvsr as package
from fedvsr.cli import common
from fedvsr.cli.common import plain_console, say
from fedvsr.cli.views import FramesView, PreparationView, follow
from fedvsr.federation.executors import Delay, Fault
from fedvsr.runs.events import Event, RoundRecorded, RunStarted
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
def test_a_round_that_lacks_clients_says_how_many_and_why(terminal: bool) -> None:
    lacking = [
        RoundRecorded(1, [3, 1, 2], 0.1, [], 1.0),
        RoundRecorded(2, [3, 1, 2], 0.1, [], 1.0, num_upload_failures=1),
        RoundRecorded(3, [3, 1, 2], None, [], 1.0, num_upload_failures=3),
        RoundRecorded(4, [3], 0.1, [], 1.0, num_failed=2),
        RoundRecorded(5, [3, 1], 0.1, [], 1.0, num_rejected=1, num_absent=1),
    ]
    text = followed([RunStarted("a", 0, 5, 1, 4, "CPU", ()), *lacking], terminal)
    assert text.count("in sum") == (1 if terminal else 4)
    for words in (
        *(["2 of 3 clients (1 lost)"] if not terminal else []),
        "0 of 3 clients (3 lost)",
        "1 of 3 clients (2 failed)",
        "1 of 3 clients (1 offline, 1 not finite)",
    ):
        assert text.count(words) == 1, words
    # In a table, the counts of all rounds, and the reasons of the last three.
    cells = re.findall(r"^ +\d +[\d,]+ +(\d of \d) ", text, flags=re.M)
    assert cells == (["2 of 3", "0 of 3", "1 of 3", "1 of 3"] if terminal else [])
    assert "in sum" not in followed([RunStarted("a", 0, 5, 1, 4, "CPU", ()), lacking[0]])


@pytest.mark.parametrize("terminal", [False, True])
def test_what_holds_up_a_run_is_told_until_it_starts(terminal: bool) -> None:
    delay = Delay("waiting for 2 CPU, which others hold", 30.0)
    told = "waiting for 2 CPU, which others hold; 30 s at most"
    assert told in followed([delay], terminal)
    text = followed([delay, RunStarted("a", 0, 1, 1, 1, "CPU", ())], terminal)
    assert told not in text.partition("a: 1 parameters")[2]


def followed(
    events: list[Event], terminal: bool = False, before: Sequence[RoundRecorded] = ()
) -> str:
    """What is shown of events at their end."""
    console = plain_console(width=200)
    console.file, console._force_terminal = io.StringIO(), terminal
    follow(events, console, before)
    return console.file.getvalue()


def numbered(*rounds: int, loss: float = 0.1) -> list[RoundRecorded]:
    return [RoundRecorded(i, [3, 1], loss, [], 1.0) for i in rounds]


@pytest.mark.parametrize("terminal", [False, True])
def test_a_resumed_run_shows_its_earlier_rounds(terminal: bool) -> None:
    # Round 4 was trained after the newest checkpoint, and is repeated.
    before = numbered(0, 1, 2, 3, 4, loss=0.25)
    started = RunStarted("a", 3, 5, 1, 4, "CPU", ())
    # The scores of round 3 were missing: its event brings them, and nothing else.
    scored = RoundRecorded(3, [], None, [], 0.5)
    text = followed([started, scored, *numbered(4, 5, loss=0.5)], terminal, before)
    assert text.count("0.2500") == (4 if terminal else 5), "rounds 0 to 3; as a line, 3 twice"
    assert text.count("0.5000") == 2
    assert terminal or text.index("0.2500") < text.index("resuming after round 3")


def test_few_of_many_earlier_rounds_are_lines() -> None:
    text = followed([RunStarted("a", 99, 200, 1, 4, "CPU", ())], before=numbered(*range(100)))
    assert "\n88 earlier rounds are not shown\nround 88/200 " in text
    assert text.count("round ") == 12 + 1


def test_a_driver_that_died_repeats_rounds_without_showing_all_again() -> None:
    started = RunStarted("a", 1, 3, 1, 4, "CPU", ())
    events = [RunStarted("a", 0, 3, 1, 4, "CPU", ()), *numbered(1, 2), started, *numbered(2, 3)]
    assert followed(events).count("round 1/3") == 1
    rows = re.findall(r"^ +(\d) +3,1 ", followed(events, terminal=True), flags=re.M)
    assert rows == ["1", "2", "3"]


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
