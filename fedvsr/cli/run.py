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
from fedvsr.files import missing_folders, remove_folders, require_folder


def run(
    source: SourceArgument = "demo",
    settings: SetOption = None,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Resume the newest unfinished run of this configuration."),
    ] = False,
    executor: Annotated[
        Literal["ray", "serial"],
        typer.Option(help="Train clients as Ray actors, or one after another here."),
    ] = "ray",
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto|ray://HOST:PORT",
            help="Ray cluster: a new one on this machine, the one this machine belongs to, or "
            "another. Default: RAY_ADDRESS, or else local.",
        ),
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run an experiment and write its tables, network and pictures to DIR/<run id>/."""
    from fedvsr.cli.views import PreparationView, follow
    from fedvsr.cluster.fetch import forget_run, record_run
    from fedvsr.config import load_config
    from fedvsr.report import figures
    from fedvsr.runs.launch import launch, prepare_data, require_weights
    from fedvsr.runs.run import create_run, find_run

    config = load_config(source, settings or ())
    require_folder(out)
    run, new = (find_run(config, out) if resume else None), missing_folders(out)
    if not run:
        # A run that is resumed starts from its checkpoint.
        require_weights(config)
    try:
        with interruptible():
            with PreparationView(console) as preparation:
                split = prepare_data(config, preparation)
            run = run or create_run(config, out)
            record_run(out, run.run_id)
            say(f"run folder: {run.folder}")
            follow(launch(run, split, executor, address), console)
    except Exception:
        # Refused before it began, for example by a cluster that lacks what the run asks for, or
        # because its weights cannot be read.
        if run and not resume and not (run.folder / "partition.parquet").exists():
            shutil.rmtree(run.folder)
            forget_run(out)
            remove_folders(new)
        raise
    except KeyboardInterrupt:
        command = ["fedvsr", "run", source]
        for setting in settings or ():
            command += ["--set", setting]
        command += ["--executor", executor] if executor != "ray" else []
        command += ["--address", address] if address else []
        command += ["--out", str(out), *(["--resume"] if run else [])]
        say(f"\nstopped; resume with: {shlex.join(command)}")
        raise typer.Exit(130) from None
    figures.draw(run.folder)
    summary(run.folder)
