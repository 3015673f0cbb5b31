"""The command line: its commands, and how errors are shown."""

from __future__ import annotations

import errno
import os
import sys
from io import TextIOWrapper
from typing import Annotated

import typer

from fedvsr import __version__
from fedvsr.cli import (
    archive,
    audit,
    check,
    cluster,
    dashboard,
    data,
    doctor,
    frames,
    jobs,
    labels,
    listing,
    new,
    report,
    reproduce,
    results,
    run,
    settings,
    tune,
)
from fedvsr.cli.common import plain_console, say
from fedvsr.environment import let_threads_sleep
from fedvsr.errors import UserError
from fedvsr.files import DISK_FULL
from fedvsr.limits import ClusterGoneError

# Commands import the modules that load torch, Ray or pandas themselves: `--help` stays quick.

# What to do about an error of a path that a user has given.
_CHECK, _CHOOSE = "check its permissions", "choose another place"
_OF_PATHS = {
    errno.EACCES: _CHECK,
    errno.EPERM: _CHECK,
    errno.EROFS: _CHOOSE,
    errno.ENOTDIR: _CHOOSE,
    errno.EISDIR: _CHOOSE,
    errno.EEXIST: _CHOOSE,
    errno.ENAMETOOLONG: _CHOOSE,
    errno.ELOOP: _CHOOSE,
}

app = typer.Typer(
    name="fedvsr",
    help="Federated video super-resolution experiments on a Ray cluster.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    if version:
        say(f"fedvsr {__version__}")
        raise typer.Exit


app.command()(run.run)
app.command()(frames.upscale)
app.command()(frames.evaluate)
app.command()(tune.tune)
app.command("tune-report")(tune.report)
app.command()(reproduce.reproduce)
app.command()(report.report)
app.command()(report.watch)
app.command()(dashboard.dashboard)
app.command()(report.export)
app.command()(audit.audit)
app.add_typer(data.app, name="data", no_args_is_help=True)
app.add_typer(cluster.app, name="cluster", no_args_is_help=True)
app.command()(jobs.submit)
app.command()(jobs.jobs)
app.command()(jobs.logs)
app.command()(jobs.stop)
app.command()(jobs.fetch)
app.command()(doctor.doctor)
app.add_typer(new.app, name="new", no_args_is_help=True)
app.command()(check.check)
app.command()(settings.algorithms)
app.command()(settings.models)
app.command()(settings.presets)
app.command("config")(settings.show_config)
app.command()(results.show)
app.command("list")(listing.list_runs)
app.command("rm")(listing.remove)
app.command()(archive.archive)
app.command("import")(archive.import_runs)
app.command()(labels.tag)
app.command()(labels.note)
app.command()(results.compare)


def main() -> None:
    """Entry point. Exit codes: 0 done, 2 the user's mistake, 1 the program's, 130 interrupted."""
    let_threads_sleep()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal of ASCII shows names in other letters as \xe9.
            stream.reconfigure(errors="backslashreplace")
    debug = "--debug" in sys.argv
    err = plain_console(stderr=True)
    try:
        # The name also for `python -m fedvsr`: a shell asks for completions by it.
        app([argument for argument in sys.argv[1:] if argument != "--debug"], prog_name="fedvsr")
    except Exception as error:
        # Every error ends here, and is printed: a mistake in one line, a fault of the program too.
        if debug:
            err.print_exception()
        if message := _user_message(error):
            err.print(f"error: {' '.join(message.splitlines())}")
            if isinstance(error, ClusterGoneError):
                sys.stdout.flush()
                # Not `sys.exit`, by which Ray is asked to say goodbye to a cluster that is gone.
                os._exit(2)
            sys.exit(2)
        reason = str(error).strip().splitlines() or [""]
        hint = "" if debug else " (--debug shows the traceback)"
        err.print(f"internal error: {type(error).__name__}: {reason[0]}{hint}")
        sys.exit(1)


def _user_message(error: Exception) -> str | None:
    """What to tell a user who can fix the error; None if it is a fault of the program."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and error.errno in DISK_FULL:
        disk = f"the disk of {error.filename}" if error.filename else "the disk"
        return f"no space left on {disk}; free some"
    if isinstance(error, OSError) and error.filename and error.errno in _OF_PATHS:
        return f"cannot access {error.filename}: {error.strerror}; {_OF_PATHS[error.errno]}"
    return None
