"""Shared parts of the commands: options, printing, and stopping on SIGTERM."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import TextColumn
from rich.table import Table


def plain_console(*, stderr: bool = False, width: int | None = None) -> Console:
    """A console that prints text as it is: no markup such as [bold], no :emoji:, no highlighting.

    What the program prints holds names and settings of users, in which these have no meaning.
    """
    return Console(
        stderr=stderr, width=width, markup=False, emoji=False, highlight=False, soft_wrap=stderr
    )


def plain_column(template: str) -> TextColumn:
    """A column of a progress bar that shows its text as it is."""
    return TextColumn(template, markup=False)


console = plain_console()
"""Standard output."""

SourceArgument = Annotated[
    str,
    typer.Argument(metavar="PRESET_OR_YAML", help="A preset (`fedvsr presets`) or a YAML file."),
]
RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, or its folder.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting, e.g. local.lr=1e-3; repeatable."
    ),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model", metavar="NAME", help="Network of a weights file that does not name its network."
    ),
]
ModelSetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="Override a setting of --model's network; repeatable."
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
    """Print a table at least 120 columns wide, so that ids can be copied whole."""
    plain_console(width=max(console.width, 120)).print(table)


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
