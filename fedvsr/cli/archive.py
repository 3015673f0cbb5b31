"""The commands `archive` and `import`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedvsr.cli import completion
from fedvsr.cli.common import OutOption, say
from fedvsr.errors import UserError
from fedvsr.files import require_folder
from fedvsr.run_names import find_folder


def archive(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...", help="Runs to put into the file.", autocompletion=completion.runs
        ),
    ],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="File to write. Default: RUN.zip, of one run."),
    ] = None,
    checkpoints: Annotated[
        bool,
        typer.Option(
            "--checkpoints",
            help="Also keep checkpoints, so that an unfinished run can be resumed from the file.",
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    out: OutOption = Path("results"),
) -> None:
    """Write runs to one file, which `fedvsr import` checks and unpacks. The runs stay.

    The training videos are not in it. A run that a process executes is refused.
    """
    from fedvsr.runs.archive import write_archive
    from fedvsr.runs.run import run_status

    folders = list(dict.fromkeys(find_folder(name, out) for name in runs))
    if to is None and len(folders) > 1:
        raise UserError("name the file for several runs: --to FILE.zip")
    path = to if to is not None else Path(f"{folders[0].resolve().name}.zip")
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if path.is_dir():
        raise UserError(f"--to {path} is a folder; name a file")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another by --to, or give --overwrite")
    count = write_archive(folders, path, checkpoints)
    for folder in folders:
        if not checkpoints and (status := run_status(folder)) != "finished":
            say(
                f"{folder.name} is {status}, and cannot be resumed from the file, which lacks its "
                "checkpoints; --checkpoints keeps them"
            )
    kept = f"{len(folders)} {'run' if len(folders) == 1 else 'runs'}"
    say(f"{path}: {kept}, {count} files, {path.stat().st_size / 1e6:,.1f} MB")


def import_runs(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A file of `fedvsr archive`.")],
    out: OutOption = Path("results"),
) -> None:
    """Bring the runs of an archive back to DIR, after checking all of it."""
    from fedvsr.runs.archive import read_archive

    require_folder(out)
    for folder in read_archive(file, out):
        say(f"run folder: {folder}")
