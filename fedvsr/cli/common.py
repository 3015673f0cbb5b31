"""Shared parts of the commands: options, printing, and stopping on SIGTERM."""

from __future__ import annotations

import io
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer
from rich.console import Console, RenderableType
from rich.measure import Measurement
from rich.progress import TextColumn
from rich.table import Table
from rich.text import Text

from fedvsr.cli import completion

_PLAIN: dict[str, Any] = {"markup": False, "emoji": False, "highlight": False}
"""A console's settings for text as it is: no markup such as [bold], no :emoji:, no highlighting.

What the program prints holds names and settings of users, in which these have no meaning.
"""


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is, see `_PLAIN`."""
    return Console(stderr=stderr, width=width, soft_wrap=stderr, **_PLAIN)


def sheet(width: int) -> Console:
    """A console that prints nowhere and can export what it was given, for a notebook's output."""
    return Console(record=True, file=io.StringIO(), width=width, force_jupyter=False, **_PLAIN)


def plain_column(template: str) -> TextColumn:
    """A column of a progress bar that shows its text as it is."""
    return TextColumn(template, markup=False)


console = plain_console()
"""Standard output."""
# Wider than any table.
_UNLIMITED = 100_000

SourceArgument = Annotated[
    str,
    typer.Argument(
        metavar="PRESET_OR_YAML",
        help="A preset (`fedvsr presets`) or a YAML file.",
        autocompletion=completion.sources,
    ),
]
RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run's id, the start of its id, its folder, or `latest`.",
        autocompletion=completion.runs,
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. local.lr=1e-3; repeatable."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        metavar="NAME",
        help="Network of a weights file that does not name its network.",
        autocompletion=completion.models,
    ),
]
ModelSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting of --model's network; repeatable."
    ),
]
ResumeSweepOption = Annotated[
    bool, typer.Option("--resume", help="Resume a sweep that was stopped or killed.")
]
MaxConcurrentOption = Annotated[
    int | None,
    typer.Option(
        "--max-concurrent",
        min=1,
        metavar="N",
        help="Most trials at once (default: as many as fit).",
    ),
]
OutOption = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the results.")]
ResultsOption = Annotated[
    Path, typer.Option("--results", metavar="DIR", help="Folder in which runs are looked up.")
]


def say(line: str) -> None:
    """Print one line without colours or wrapping."""
    console.print(line, soft_wrap=True)


def print_wide(table: Table) -> None:
    """Print a table with every cell whole, so that ids can be copied and numbers read.

    Where the width is limited and too small, each row is printed as lines: its first cell, then a
    column's name and cell per line. A pipe or a file has no limit.
    """
    unlimited = plain_console(width=_UNLIMITED)
    needed = Measurement.get(unlimited, unlimited.options, table).maximum
    if (console.is_terminal or "COLUMNS" in os.environ) and needed > console.width:
        for line in _facts(table):
            console.print(line, soft_wrap=True)
        return
    plain_console(width=max(needed, console.width)).print(table)


def _facts(table: Table) -> Iterator[Text]:
    """The rows of a table as lines, one cell a line; empty cells are left out."""
    names = [_text(column.header) for column in table.columns]
    longest = max((len(name) for name in names[1:]), default=0)
    for cells in zip(*(column.cells for column in table.columns), strict=True):
        first, *others = map(_text, cells)
        first.stylize("bold")
        yield first
        for name, text in zip(names[1:], others, strict=True):
            if text.plain:
                yield Text.assemble("  ", name.plain.ljust(longest + 2), text)


def _text(cell: RenderableType) -> Text:
    return cell.copy() if isinstance(cell, Text) else console.render_str(str(cell))


@contextmanager
def interruptible() -> Iterator[None]:
    """Treat SIGTERM as Ctrl-C inside: `ray job stop`, Slurm and Kubernetes end a process with it.

    Raises:
        KeyboardInterrupt: the process was asked to stop, and nobody else handles Ctrl-C. Ray Tune
            does: it saves its state first.
    """

    def interrupt(_: int, frame: FrameType | None) -> None:
        handler = signal.getsignal(signal.SIGINT)
        # A shell lets its background jobs ignore Ctrl-C, but SIGTERM must stop them too.
        (handler if callable(handler) else signal.default_int_handler)(signal.SIGINT, frame)

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
