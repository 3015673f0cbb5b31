"""The command `reproduce`: a sweep of the paper, from the check of what it needs to its report."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedvsr.cli.common import MaxConcurrentOption, ResumeSweepOption, SetOption, say
from fedvsr.errors import UserError

if TYPE_CHECKING:
    from fedvsr.tuning.reproduce import Missing, Plan

# The commands import Ray and torch when they run, so that `--help` stays quick.

Paper = Literal["preprint", "published"]
_OUT, _OUT_ON_CLUSTER = "results", "~/fedvsr-results"


def reproduce(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="SWEEP", help="A sweep of the paper, e.g. table1. Without one: list."
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            "--data", metavar="DIR", help="Folder of the stores reds, reds4, vid4 and kinetics."
        ),
    ] = None,
    size: Annotated[
        Literal["paper", "demo"],
        typer.Option(
            "--size", help="demo: small networks, a tenth of the clients, 2 rounds, no GPU."
        ),
    ] = "paper",
    paper: Annotated[
        Paper, typer.Option("--paper", help="Form of the paper that the report compares with.")
    ] = "published",
    settings: SetOption = None,
    address: Annotated[
        str | None,
        typer.Option(
            metavar="local|auto",
            help="Ray cluster: one started here, or the one this machine belongs to. Default: "
            "RAY_ADDRESS, else local.",
        ),
    ] = None,
    submit: Annotated[
        str | None,
        typer.Option(
            "--submit",
            metavar="http://HEAD:8265",
            help="Do all of it as a job of this cluster; --data and --out are folders there.",
        ),
    ] = None,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help=f"Folder of the results. Default: {_OUT}; with --submit {_OUT_ON_CLUSTER}.",
        ),
    ] = None,
    resume: ResumeSweepOption = False,
    max_concurrent: MaxConcurrentOption = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print what is missing, the trials and their cost only."),
    ] = False,
) -> None:
    """Run one of the paper's sweeps on your data, and report it beside the paper's values.

    It first checks stores, weights and GPUs, and prints the command that makes what is missing.
    """
    from fedvsr.tuning.reproduce import planned

    if name is None:
        _list()
        return
    if data is None:
        raise UserError(
            "--data DIR is missing: the folder of the stores reds, reds4, vid4 and kinetics that "
            "`fedvsr data prepare` makes"
        )
    plan = planned(name, Path(data), size, settings or ())
    again = ["reproduce", name, "--data", data, "--size", size, "--paper", paper]
    for setting in settings or ():
        again += ["--set", setting]
    if submit is not None:
        again += ["--max-concurrent", str(max_concurrent)] if max_concurrent else []
        again += ["--resume"] if resume else []
        _submit(submit, name, again, data, out or _OUT_ON_CLUSTER, dry_run)
        return
    results = Path(out or _OUT)
    again += ["--out", str(results), *(["--address", address] if address else [])]
    _run(plan, paper, results, address, max_concurrent, resume, dry_run, again)


def _run(
    plan: Plan,
    paper: Paper,
    out: Path,
    address: str | None,
    max_concurrent: int | None,
    resume: bool,
    dry_run: bool,
    again: Sequence[str],
) -> None:
    """Check, run and report here, or on the cluster that this machine belongs to."""
    from fedvsr.cli.tune import at_once, print_plan, require_startable, run_sweep_in
    from fedvsr.cli.views import StepsView
    from fedvsr.report.write import FORMATS, write_report
    from fedvsr.tuning.reproduce import missing

    require_startable(address, max_concurrent, resume)
    needs_gpus = plan.size == "paper"
    has_gpus = at_once(plan.sweep, plan.trials, address)[2] if needs_gpus else False
    lacking = missing(plan, has_gpus)
    _print(lacking)
    if dry_run:
        print_plan(plan.sweep, plan.trials, address, max_concurrent, out)
        return
    if lacking:
        raise UserError(f"{plan.sweep.name} cannot start: see what is missing above")
    folder = run_sweep_in(out, plan.sweep, plan.trials, address, max_concurrent, resume, again)
    with StepsView() as view:
        formats = [name for name in FORMATS if name != "pdf"]
        for _ in write_report(folder, folder / "report", formats, paper=paper, progress=view):
            pass
    say(f"open {folder / 'report' / 'report.html'}")


def _print(lacking: Sequence[Missing]) -> None:
    for each in lacking:
        say(f"missing: {each.what}")
        say(f"  {each.remedy}")


def _submit(
    address: str, name: str, again: Sequence[str], data: str, out: str, dry_run: bool
) -> None:
    """Run the same command as a job, which checks what is missing on the cluster."""
    from fedvsr.cluster import jobs, package

    for option, path in (("--data", data), ("--out", out)):
        if not path.startswith(("/", "~/")):
            raise UserError(
                f"{option} {path}: give an absolute path on the cluster, or one from ~/"
            )
    arguments = ["python", "-m", "fedvsr", *again, "--address", "auto", "--out", out]
    command = jobs.shell_command(arguments)
    server = None if dry_run else jobs.Jobs(address)
    with tempfile.TemporaryDirectory() as folder:
        built = package.build(Path(folder) / "package", None, (), source=True)
        say(f"package: {built}")
        say(f"job: {command}")
        if server is None:
            return
        job_id = server.submit(command, built.folder, name, out)
    say(f"submitted {job_id}")
    follow = ["fedvsr", "logs", job_id, "--address", server.address, "--follow"]
    say(f"  {shlex.join(follow)}")
    say(f"  {shlex.join(['fedvsr', 'fetch', job_id, '--address', server.address])}")


def _list() -> None:
    from fedvsr.tuning.reproduce import descriptions

    for name, description in descriptions().items():
        say(f"{name:<20} {description}")
