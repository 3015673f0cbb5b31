"""Commands for jobs on a Ray cluster: submit, jobs, logs, stop, fetch."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedvsr.cli.common import print_wide, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from fedvsr.cluster.jobs import Jobs

# Ray is imported by the commands: `--help` stays quick.

_SHOWN = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="http://HEAD:8265",
        help="Job server of the cluster's head. Default: what RAY_API_SERVER_ADDRESS says, else "
        "this machine's.",
    ),
]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="A job's id (`fedvsr jobs`).")]
PythonOption = Annotated[
    str, typer.Option("--python", metavar="PATH", help="Interpreter on the head.")
]


def submit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="PRESET_OR_YAML", help="A preset (`fedvsr presets`) or a YAML file."
        ),
    ],
    address: AddressOption = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Override a setting; repeatable."),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder of the results, on the cluster.")
    ] = "~/fedvsr-results",
    follow: Annotated[
        bool, typer.Option("--follow", help="Show what it prints; exit with its exit code.")
    ] = False,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on with the newest unfinished run under --out.")
    ] = False,
    include: Annotated[
        list[Path] | None,
        typer.Option("--include", metavar="PATH", help="Ship this file or folder; repeatable."),
    ] = None,
    installed: Annotated[
        bool, typer.Option("--installed", help="Use the fedvsr that the nodes have installed.")
    ] = False,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="DIR", help="Keep what is shipped in this new folder."),
    ] = None,
    python: PythonOption = "python",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show all of it, submit nothing.")
    ] = False,
) -> None:
    """Run an experiment as a job of a Ray cluster."""
    from fedvsr.cluster import jobs
    from fedvsr.cluster import package as job_package
    from fedvsr.config import load_config

    if not out.startswith(("/", "~/")):
        raise UserError(f"--out {out}: give an absolute path on the cluster, or one from ~/")
    config = load_config(source, settings or ())
    # What connects comes first: the rest is of no use without it.
    server = None if dry_run else jobs.Jobs(address)
    arguments = [python, "-m", "fedvsr", "run", job_package.CONFIG, "--out", out]
    arguments += ["--resume"] if resume else []
    with tempfile.TemporaryDirectory() if package is None else nullcontext(package) as folder:
        inside = Path(folder) / "package" if package is None else package
        built = job_package.build(inside, config, include or [], source=not installed)
        say(f"package: {built}")
        to = server.address if server else (address or jobs.DEFAULT_ADDRESS)
        kept = str(package) if package else "DIR"
        say(f"the same by Ray alone: {jobs.ray_command(to, kept, arguments, config.name, out)}")
        if package is None:
            say("(DIR: what --package DIR keeps)")
        if server is None:
            return
        command = jobs.shell_command(arguments)
        job_id = server.submit(command, built.folder, config.name, out)
    say(f"submitted {job_id}")
    if follow:
        follow_job(server, job_id)
    say(_ways(server, job_id, "logs --follow", "stop", "fetch"))


def jobs(address: AddressOption = None) -> None:
    """List the jobs that fedvsr submitted to a cluster."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "exit", "started (UTC)", "minutes"):
        table.add_column(name, no_wrap=True, justify="right" if name == "minutes" else "left")
    for job in server.list():
        style = _SHOWN.get(job.status, "")
        table.add_row(
            job.job_id,
            f"[{style}]{job.status}[/]" if style else job.status,
            "" if job.exit_code is None else str(job.exit_code),
            f"{job.started_at:%Y-%m-%d %H:%M:%S}" if job.started_at else "",
            "" if job.wall_s is None else f"{job.wall_s / 60:.1f}",
        )
    if not table.rows:
        say(f"no jobs at {server.address} yet; `fedvsr submit` starts one")
        return
    print_wide(table)


def logs(
    job: JobArgument,
    address: AddressOption = None,
    follow: Annotated[
        bool, typer.Option("--follow", help="Until it is over; exit with its exit code.")
    ] = False,
) -> None:
    """Show what a job has printed."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    if follow:
        follow_job(server, job)
    _print_text(server.logs(job))


def stop(job: JobArgument, address: AddressOption = None) -> None:
    """Stop a job: it saves its state first, and is killed after a minute."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    before = server.get(job)
    if before.exit_code is not None:
        say(f"{job} was over already: {before.status}, exit code {before.exit_code}")
        return
    after = server.stop(job)
    say(f"{job}: {after.status}; `fedvsr submit ... --resume` goes on from what it saved")


def fetch(
    job: JobArgument,
    address: AddressOption = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder that gets the run's.")
    ] = Path("results"),
    checkpoints: Annotated[
        bool, typer.Option("--checkpoints", help="The saved states too, to go on from here.")
    ] = False,
    python: PythonOption = "python",
) -> None:
    """Copy the results of a job's run to this machine."""
    from fedvsr.cluster.jobs import Jobs

    folder, num_files = Jobs(address).fetch(job, out, checkpoints, python)
    say(f"{folder}/: {num_files} files, checksum right; `fedvsr show {folder}`")


def follow_job(server: Jobs, job_id: str) -> None:
    """To the job's end; leaves with its exit code. Ctrl-C leaves the job alone."""
    try:
        job = server.follow(job_id, _print_text)
    except KeyboardInterrupt:
        say(f"\n{job_id} goes on")
        say(_ways(server, job_id, "logs --follow", "stop"))
        raise typer.Exit(130) from None
    say(f"{job_id}: {job.status}, exit code {job.exit_code}")
    if job.exit_code == 0:
        say(_ways(server, job_id, "fetch"))
    raise typer.Exit(job.exit_code or 0)


def _ways(server: Jobs, job_id: str, *commands: str) -> str:
    lines = []
    for command in commands:
        name, _, option = command.partition(" ")
        where = f"--address {server.address}"
        lines.append(" ".join(filter(None, ["  fedvsr", name, job_id, where, option])))
    return "\n".join(lines)


def _print_text(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
