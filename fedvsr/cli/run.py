"""The command `run`."""

from __future__ import annotations

import shlex
from contextlib import closing
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
from fedvsr.files import require_folder


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
    tags: Annotated[
        list[str] | None,
        typer.Option("--tag", metavar="TAG", help="Tag to give the run; repeatable."),
    ] = None,
    out: OutOption = Path("results"),
) -> None:
    """Run an experiment and write its tables, network and pictures to DIR/<run id>/."""
    from fedvsr.cli.views import PreparationView, follow
    from fedvsr.config import load_config
    from fedvsr.heap import keep_freed
    from fedvsr.labels import add_tags, checked_tags
    from fedvsr.report import figures
    from fedvsr.runs.launch import launch, prepare_data, require_weights
    from fedvsr.runs.run import begun, find_run
    from fedvsr.runs.watch import recorded

    config = load_config(source, settings or ())
    require_folder(out)
    checked_tags(tags or ())
    if executor == "serial":
        keep_freed()
    run = found = find_run(config, out) if resume else None
    if not found:
        # A run that is resumed starts from its checkpoint.
        require_weights(config)
    try:
        with interruptible():
            with PreparationView(console) as preparation:
                split = prepare_data(config, preparation)
            with begun(config, out, found) as run:
                if tags:
                    add_tags(run.folder, tags)
                say(f"run folder: {run.folder}")
                before = recorded(run.folder) if found else ()
                with closing(launch(run, split, executor, address)) as events:
                    follow(events, console, before)
    except KeyboardInterrupt:
        command = ["fedvsr", "run", source]
        for setting in settings or ():
            command += ["--set", setting]
        command += ["--executor", executor] if executor != "ray" else []
        command += ["--address", address] if address else []
        command += ["--out", str(out), *(["--resume"] if run else [])]
        say(f"\nstopped; resume with: {shlex.join(command)}")
        raise typer.Exit(130) from None
    assert run
    figures.draw(run.folder)
    summary(run.folder)
