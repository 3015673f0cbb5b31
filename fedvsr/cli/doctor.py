"""The command `doctor`, which checks a machine or a cluster before a run needs it."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from fedvsr.cli.common import SetOption, console, plain_console

if TYPE_CHECKING:
    from fedvsr.cluster.doctor import Finding
    from fedvsr.config import ExperimentConfig

# The command imports Ray and torch when it runs, so that `--help` stays quick.

_LEVELS = {"ok": ("ok", "green"), "warning": ("look", "yellow"), "error": ("FAIL", "red")}


def doctor(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[PRESET_OR_YAML]", help="Also check this experiment's data and weights."
        ),
    ] = None,
    settings: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="auto|HOST:PORT|http://HEAD:8265",
            help="Cluster to check: the one this machine belongs to, or another by its job server. "
            "Default: RAY_ADDRESS, or that of `fedvsr cluster up`, else only this machine.",
        ),
    ] = None,
) -> None:
    """Check this machine, or every node of a cluster; exit with 1 if a check fails."""
    from fedvsr.cluster import doctor as checks
    from fedvsr.cluster import local_head
    from fedvsr.config import load_config

    config = load_config(source, settings or ()) if source else None
    address = address or os.environ.get("RAY_ADDRESS")
    if address is None and (head := local_head.find()):
        address = head.address
    if address and address.startswith("http"):
        _check_by_job(config, address)
    if address:
        from fedvsr.federation.connection import connected

        with connected(address, 0):
            findings = checks.look_around(config)
    else:
        findings = checks.look_here(config)
    _print(findings)
    if any(finding.level == "error" for finding in findings):
        raise typer.Exit(1)


def _check_by_job(config: ExperimentConfig | None, address: str) -> NoReturn:
    """Run `doctor` as a job on the cluster, show what it prints, and exit with its exit code."""
    from fedvsr.cli.jobs import follow_job
    from fedvsr.cluster import package as job_package
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    with tempfile.TemporaryDirectory() as folder:
        built = job_package.build(Path(folder) / "package", config, [], source=True)
        source = f" {job_package.CONFIG}" if config else ""
        command = f"python -m fedvsr doctor{source} --address auto"
        job_id = server.submit(command, built.folder, "doctor")
    follow_job(server, job_id, has_run=False)


def _print(findings: Sequence[Finding]) -> None:
    table = Table(box=None, pad_edge=False)
    for name in ("check", "", "where", "found", "what to do"):
        table.add_column(name, overflow="fold")
    for finding in findings:
        level = Text(*_LEVELS[finding.level])
        table.add_row(finding.check, level, finding.where, finding.found, finding.todo)
    # A log gets each finding on one line.
    wide = console if console.is_terminal else plain_console(width=10_000)
    wide.print(table)
