"""The commands `submit`, `jobs`, `logs`, `stop` and `fetch`, for jobs of a Ray cluster."""

from __future__ import annotations

import sys
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from fedvsr.cli.common import SetOption, SourceArgument, print_wide, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from fedvsr.cluster.jobs import Jobs

# The commands import Ray when they run, so that `--help` stays quick.

_STYLES = {"SUCCEEDED": "green", "FAILED": "red", "STOPPED": "yellow"}

AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        metavar="http://HEAD:8265",
        help="Job server of the cluster's head. Default: RAY_API_SERVER_ADDRESS, or that of "
        "`fedvsr cluster up`, else this machine's.",
    ),
]
JobArgument = Annotated[
    str,
    typer.Argument(
        metavar="JOB", help="A job's id (`fedvsr jobs`), or `latest`: the last experiment's."
    ),
]
PythonOption = Annotated[
    str, typer.Option("--python", metavar="PATH", help="Python interpreter on the head.")
]


def submit(
    source: SourceArgument,
    address: AddressOption = None,
    settings: SetOption = None,
    out: Annotated[
        str, typer.Option("--out", metavar="DIR", help="Folder of the results, on the cluster.")
    ] = "~/fedvsr-results",
    follow: Annotated[
        bool,
        typer.Option("--follow", help="Show what the job prints; exit with its exit code."),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Resume the newest unfinished run of this configuration under --out.",
        ),
    ] = False,
    include: Annotated[
        list[Path] | None,
        typer.Option(
            "--include", metavar="PATH", help="Ship a file or folder with the job; repeatable."
        ),
    ] = None,
    installed: Annotated[
        bool,
        typer.Option("--installed", help="Use the fedvsr installed on the nodes; ship no source."),
    ] = False,
    package: Annotated[
        Path | None,
        typer.Option("--package", metavar="DIR", help="Keep what is shipped in a new folder DIR."),
    ] = None,
    python: PythonOption = "python",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check and show everything, but submit nothing.")
    ] = False,
) -> None:
    """Run an experiment as a job of a Ray cluster."""
    from fedvsr.cluster import job_server, jobs
    from fedvsr.cluster import package as job_package
    from fedvsr.config import load_config
    from fedvsr.loggers.config import require_lasting

    if not out.startswith(("/", "~/")):
        raise UserError(f"--out {out}: give an absolute path on the cluster, or one from ~/")
    config = load_config(source, settings or ())
    require_lasting(config.logging)
    # Connect first: without a cluster, building the package is wasted work.
    server = None if dry_run else jobs.Jobs(address)
    arguments = [python, "-m", "fedvsr", "run", job_package.CONFIG, "--out", out]
    arguments += ["--resume"] if resume else []
    with tempfile.TemporaryDirectory() if package is None else nullcontext(package) as folder:
        inside = Path(folder) / "package" if package is None else package
        built = job_package.build(inside, config, include or [], source=not installed)
        say(f"package: {built}")
        head = server.address if server else (address or job_server.DEFAULT_ADDRESS)
        kept = str(package) if package else "DIR"
        line = jobs.ray_command(head, kept, arguments, config.name, out)
        say(f"the same without fedvsr: {line}")
        if package is None:
            say("(DIR is the folder that --package DIR keeps)")
        if server is None:
            return
        command = jobs.shell_command(arguments)
        job_id = server.submit(command, built.folder, config.name, out)
    say(f"submitted {job_id}")
    if follow:
        follow_job(server, job_id)
    say(_next_commands(server, job_id, "logs --follow", "stop", "fetch"))


def jobs(address: AddressOption = None) -> None:
    """List the jobs that fedvsr submitted to a cluster."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    table = Table(box=None, pad_edge=False)
    for name in ("job", "status", "exit", "started (UTC)", "minutes"):
        table.add_column(name, no_wrap=True, justify="right" if name == "minutes" else "left")
    for job in server.list():
        table.add_row(
            job.job_id,
            Text(job.status, style=_STYLES.get(job.status, "")),
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
        bool,
        typer.Option("--follow", help="Follow the job to its end; exit with its exit code."),
    ] = False,
) -> None:
    """Show what a job has printed."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    job = server.named(job)
    if follow:
        follow_job(server, job)
    _print_text(server.logs(job))


def stop(job: JobArgument, address: AddressOption = None) -> None:
    """Stop a job, which saves its state first; it is killed after a minute."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    job = server.named(job)
    before = server.get(job)
    if before.exit_code is not None:
        say(f"{job} had ended already: {before.status}, exit code {before.exit_code}")
        return
    after = server.stop(job)
    say(f"{job}: {after.status}; `fedvsr submit ... --resume` resumes from its saved state")


def fetch(
    job: JobArgument,
    address: AddressOption = None,
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Local folder of results to copy it into.")
    ] = Path("results"),
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Also copy checkpoints, so that a run can be resumed here. A sweep cannot.",
        ),
    ] = False,
    python: PythonOption = "python",
) -> None:
    """Copy the folder of a job's run or sweep to this machine."""
    from fedvsr.cluster.jobs import Jobs

    server = Jobs(address)
    folder, num_files = server.fetch(server.named(job), out, checkpoints, python)
    look = "show" if (folder / "config.yaml").is_file() else "report"
    say(f"{folder}/: {num_files} files, checksum correct; `fedvsr {look} {folder}`")


def follow_job(server: Jobs, job_id: str, has_run: bool = True) -> NoReturn:
    """Show what a job prints until it ends, and exit with its exit code.

    Ctrl-C ends the display; the job keeps running.

    Args:
        server: the cluster's job server.
        job_id: the job.
        has_run: whether the job makes a run, whose folder can be fetched.
    """
    try:
        job = server.follow(job_id, _print_text)
    except KeyboardInterrupt:
        say(f"\n{job_id} keeps running")
        say(_next_commands(server, job_id, "logs --follow", "stop"))
        raise typer.Exit(130) from None
    say(f"{job_id}: {job.status}, exit code {job.exit_code}")
    if has_run and job.exit_code == 0:
        say(_next_commands(server, job_id, "fetch"))
    raise typer.Exit(job.exit_code or 0)


def _next_commands(server: Jobs, job_id: str, *commands: str) -> str:
    """Lines to copy, one per command; `logs --follow` becomes `fedvsr logs JOB ... --follow`."""
    lines = []
    for command in commands:
        name, *options = command.split()
        words = ["  fedvsr", name, job_id, "--address", server.address, *options]
        lines.append(" ".join(words))
    return "\n".join(lines)


def _print_text(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
