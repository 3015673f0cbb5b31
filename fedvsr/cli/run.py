"""The command `run`."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path
from typing import Annotated, Literal

import typer

from fedvsr.cli.common import (
    OutOption,
    SetOption,
    SourceArgument,
    console,
    interruptible,
    say,
)
from fedvsr.cli.results import summary
from fedvsr.errors import UserError


def run(
    source: SourceArgument = "demo",
    settings: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Go on with the newest unfinished run of this configuration."
        ),
    ] = False,
    executor: Annotated[
        Literal["ray", "serial"],
        typer.Option(help="Clients as Ray actors, or one by one in this process."),
    ] = "ray",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT",
            help="Ray cluster: one started here, the one this machine is in, or another. "
            "Default: what RAY_ADDRESS says, else local.",
        ),
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run an experiment and write its tables, network and pictures to DIR/<run id>/."""
    from fedvsr.cli.views import PreparationView, follow
    from fedvsr.cluster.fetch import forget_run, record_run
    from fedvsr.config import load_config
    from fedvsr.report import figures
    from fedvsr.runs.launch import launch, prepare_data
    from fedvsr.runs.run import create_run, find_run

    config = load_config(source, settings or ())
    this = find_run(config, out) if resume else None
    try:
        with interruptible():
            with PreparationView(console) as preparation:
                split = prepare_data(config, preparation)
            this = this or create_run(config, out)
            record_run(out, this.run_id)
            say(f"run folder: {this.folder}")
            follow(launch(this, split, executor, address), console)
    except UserError:
        # Refused before it began, as by a cluster that lacks what it asks for.
        if this and not resume and not (this.folder / "runs.parquet").exists():
            shutil.rmtree(this.folder)
            forget_run(out)
        raise
    except KeyboardInterrupt:
        again = ["fedvsr", "run", source]
        for setting in settings or ():
            again += ["--set", shlex.quote(setting)]
        again += ["--executor", executor] if executor != "ray" else []
        again += ["--address", shlex.quote(address)] if address else []
        again += ["--out", shlex.quote(str(out)), *(["--resume"] if this else [])]
        say(f"\nstopped; go on with: {' '.join(again)}")
        raise typer.Exit(130) from None
    figures.draw(this.folder)
    summary(this.folder)
