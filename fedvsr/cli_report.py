"""The commands on results, `report`, `watch` and `export`: parse, call, print."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from fedvsr.errors import UserError

if TYPE_CHECKING:
    from fedvsr.report.crops import Crop

# Modules that load torch or matplotlib are imported by the commands: `--help` stays quick.

_out = Console()


def report(
    results: Annotated[
        Path, typer.Argument(metavar="RESULTS", help="Folder of runs, or one run's own.")
    ] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Where to write. Default: RESULTS/report."),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="LIST",
            help="Of md, csv, tex, html, png, pdf, with commas between.",
        ),
    ] = "md,csv,html,png",
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="X,Y,SIZE",
            help="Crop of the comparison, in pixels. Default: where methods differ most.",
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="CLIP", help="Test clip that it is taken from.")
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Print docs/reference/results.md and do nothing else.")
    ] = False,
) -> None:
    """Write tables, figures and a page of the runs there are, finished or not."""
    if columns:
        from fedvsr.report.columns import reference

        typer.echo(reference(), nl=False)
        return
    from fedvsr.report.write import FORMATS, write_report

    asked = [name.strip() for name in formats.split(",") if name.strip()]
    unknown = [name for name in asked if name not in FORMATS]
    if unknown or not asked:
        raise UserError(
            f"--format {formats!r}: {unknown[0] if unknown else 'nothing'} is not a format; give "
            f"some of {','.join(FORMATS)}"
        )
    target = out if out is not None else results / "report"
    chosen = [name for name in FORMATS if name in asked]
    for path in write_report(results, target, chosen, _crop(crop), clip):
        _out.print(str(path), highlight=False, markup=False, soft_wrap=True)


def _crop(text: str | None) -> Crop | None:
    from fedvsr.report.crops import Crop

    if text is None:
        return None
    match = re.fullmatch(r"(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if not match or int(match[3]) < 1:
        raise UserError(f"--crop {text!r} is not X,Y,SIZE in whole pixels, such as 400,120,96")
    return Crop(int(match[1]), int(match[2]), int(match[3]))
