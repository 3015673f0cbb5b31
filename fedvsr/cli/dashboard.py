"""The command `dashboard`, and the page of `watch --serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvsr.cli.common import say
from fedvsr.errors import UserError

LOOPBACK = "127.0.0.1"

HostOption = Annotated[
    str,
    typer.Option(
        "--host",
        metavar="ADDRESS",
        help="Address to listen at. Another than this machine's own is reached without encryption.",
    ),
]
PortOption = Annotated[
    int, typer.Option("--port", min=0, max=65535, help="Port to listen at; 0: a free one.")
]


def dashboard(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder of runs, or of one run.")
    ] = Path("results"),
    host: HostOption = LOOPBACK,
    port: PortOption = 0,
) -> None:
    """Show all runs on a page in the browser that updates by itself, until Ctrl-C.

    It only reads the folder, so runs of another machine are shown as well.
    """
    if not results.is_dir():
        raise UserError(f"there is no folder {results}; `fedvsr run` writes to results/")
    show_page(results, results if _is_run(results) else None, host, port)


def _is_run(folder: Path) -> bool:
    """Whether a folder is a run's own; one with collected tables of several runs is none."""
    from fedvsr.records import read_runs

    if (folder / "config.yaml").is_file():
        return True
    return (folder / "runs.parquet").is_file() and len(read_runs(folder)) == 1


def show_page(root: Path, only: Path | None, host: str, port: int) -> None:
    """Serve the page of a results folder, or of one run's folder, until Ctrl-C."""
    from fedvsr.dashboard.server import serve

    def ready(address: str) -> None:
        say(f"{address}  (Ctrl-C ends it)")

    serve(root, only.resolve() if only else None, host, port, ready)
    say("\nthe page is closed; no run is affected")
