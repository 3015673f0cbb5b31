"""The commands `cluster up` and `cluster down`: a Ray head on this machine, for a first try."""

from __future__ import annotations

import os
import shlex
from typing import Annotated

import typer

from fedvsr.cli.common import say

app = typer.Typer(help="Start a Ray head on this machine to try jobs on, and end it.")


@app.command()
def up(
    num_cpus: Annotated[
        int | None,
        typer.Option(
            "--num-cpus",
            min=2,
            metavar="N",
            help="Processors that it offers (default: all, and one more for a run's driver).",
        ),
    ] = None,
) -> None:
    """Start a head that only this machine reaches, with a token of its own."""
    from fedvsr.cluster import local_head

    # A driver waits while clients train.
    head = local_head.start(num_cpus or (os.cpu_count() or 1) + 1)
    say(f"a head listens at {head.address}; `fedvsr cluster down` ends it")
    say("doctor, submit, jobs, logs, stop and fetch find it; other programs need:")
    variables = {"RAY_ADDRESS": head.control_address, **head.variables}
    say("export " + " ".join(f"{k}={shlex.quote(v)}" for k, v in variables.items()))


@app.command()
def down() -> None:
    """End the head, and all that runs on it."""
    from fedvsr.cluster import local_head

    head = local_head.end()
    say(f"the head at {head.address} and all that it had started have ended")
