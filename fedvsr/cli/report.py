"""The commands `report`, `watch` and `export`."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fedvsr.cli import completion
from fedvsr.cli.common import (
    ModelOption,
    ModelSetOption,
    OutOption,
    ResultsOption,
    RunArgument,
    console,
    say,
)
from fedvsr.cli.dashboard import LOOPBACK, HostOption, PortOption, show_page
from fedvsr.errors import UserError
from fedvsr.files import require_folder
from fedvsr.run_names import NoRunError, find_folder

if TYPE_CHECKING:
    from fedvsr.report.crops import Crop

# The commands import what loads torch or matplotlib, so that `--help` stays quick.


def report(
    results: Annotated[
        Path,
        typer.Argument(
            metavar="RESULTS",
            help="Folder of runs, or a run in results/: its id, the start of it, or `latest`.",
            autocompletion=completion.runs,
        ),
    ] = Path("results"),
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="DIR", help="Folder to write to. Default: RESULTS/report."),
    ] = None,
    formats: Annotated[
        str,
        typer.Option(
            "--format",
            metavar="LIST",
            help="Formats, separated by commas: md, csv, tex, html, png, pdf.",
        ),
    ] = "md,csv,html,png",
    crop: Annotated[
        str | None,
        typer.Option(
            "--crop",
            metavar="X,Y,SIZE",
            help="Crop of a frame to compare, in pixels. Default: where methods differ most.",
        ),
    ] = None,
    clip: Annotated[
        str | None, typer.Option("--clip", metavar="CLIP", help="Test clip to crop.")
    ] = None,
    clients: Annotated[
        bool, typer.Option("--clients", help="Also draw the clients of every method (png, pdf).")
    ] = False,
    paper: Annotated[
        Literal["preprint", "published"],
        typer.Option("--paper", help="Form of the FedVSR paper whose values to show."),
    ] = "preprint",
    metrics: Annotated[
        str | None,
        typer.Option(
            "--metrics",
            metavar="LIST",
            help="Metrics to show, separated by commas, e.g. psnr_db,psnr_y_db. "
            "Default: all that were scored but luma's.",
        ),
    ] = None,
    columns: Annotated[
        bool, typer.Option("--columns", help="Only print docs/reference/results.md.")
    ] = False,
) -> None:
    """Write tables, figures and a page of all runs, finished or not.

    The trials of sweeps below RESULTS are left out; `fedvsr tune-report` shows them.
    """
    if columns:
        from fedvsr.report.columns import reference

        typer.echo(reference(), nl=False)
        return
    from fedvsr.cli.views import StepsView
    from fedvsr.report.write import FORMATS, write_report

    names = [name.strip() for name in formats.split(",") if name.strip()]
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UserError(
            f"--format {formats!r}: {unknown[0] if unknown else 'nothing'} is not a format; give "
            f"some of {','.join(FORMATS)}"
        )
    if not results.is_dir():
        with suppress(NoRunError):
            # Without such a run either, what reads the folder says that it is missing.
            results = find_folder(str(results), Path("results"))
    target = out if out is not None else results / "report"
    if results.is_dir():
        require_folder(target)
    chosen = [name for name in FORMATS if name in names]
    square = _crop(crop)
    with StepsView() as view:
        for path in write_report(
            results, target, chosen, square, clip, clients, paper, _metrics(metrics), view
        ):
            view.say(str(path))
    if "html" in chosen or "md" in chosen:
        say(f"open {target / ('report.html' if 'html' in chosen else 'report.md')}")


def _metrics(text: str | None) -> list[str] | None:
    from fedvsr.lookup import did_you_mean
    from fedvsr.metrics import METRICS

    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in METRICS]
    if unknown or not names:
        what = unknown[0] if unknown else "nothing"
        raise UserError(
            f"--metrics {text!r}: {what} is not a metric{did_you_mean(what, METRICS)} (there are: "
            f"{', '.join(METRICS)})"
        )
    return names


def _crop(text: str | None) -> Crop | None:
    from fedvsr.report.crops import Crop

    if text is None:
        return None
    match = re.fullmatch(r"(\d+),(\d+),(\d+)", text.replace(" ", ""))
    if not match or int(match[3]) < 1:
        raise UserError(f"--crop {text!r} is not X,Y,SIZE in whole pixels, such as 400,120,96")
    return Crop(int(match[1]), int(match[2]), int(match[3]))


def watch(
    run: RunArgument,
    out: OutOption = Path("results"),
    every: Annotated[
        float, typer.Option("--every", min=0.1, max=3600, help="Seconds between two reads.")
    ] = 1.0,
    serve: Annotated[
        bool, typer.Option("--serve", help="Show it on a page in the browser instead.")
    ] = False,
    host: HostOption = LOOPBACK,
    port: PortOption = 0,
) -> None:
    """Follow a run from another terminal until it ends, or with --serve in a browser.

    The run may be on another machine whose folder this one can read: only its files are read.
    """
    if serve:
        folder = find_folder(run, out)
        show_page(folder, folder, host, port)
        return
    if port or host != LOOPBACK:
        raise UserError("--host and --port go with --serve")
    from fedvsr.cli.views import follow
    from fedvsr.runs.watch import ending
    from fedvsr.runs.watch import watch as events

    folder = find_folder(run, out)
    try:
        follow(events(folder, every), console)
    except KeyboardInterrupt:
        say("\nstopped watching; the run continues")
        raise typer.Exit(130) from None
    status, error = ending(folder)
    say(f"{folder.name} {status}")
    if error:
        say(f"error: {error}")
    if status != "finished":
        raise typer.Exit(1)


def export(
    checkpoint: Annotated[
        str,
        typer.Argument(
            metavar="RUN_OR_FILE",
            help="A run's id, the start of its id, its folder, `latest`, or a file of weights.",
            autocompletion=completion.runs,
        ),
    ],
    to: Annotated[
        Literal["safetensors", "torch", "onnx"], typer.Option("--to", help="Format to write.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="File to write. Default: NAME.safetensors, .pth or .onnx."
        ),
    ] = None,
    shape: Annotated[
        str | None,
        typer.Option(
            "--input",
            metavar="FRAMESxHEIGHTxWIDTH",
            help="Input size of an ONNX file. Default: a small one that suits the network.",
        ),
    ] = None,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Add the adapters of model.adapter to the weights: a plain network."
        ),
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing file.")
    ] = False,
    model: ModelOption = None,
    settings: ModelSetOption = None,
    results: ResultsOption = Path("results"),
) -> None:
    """Write a trained network for other programs; an ONNX file is checked against PyTorch."""
    from fedvsr.inference.export import (
        SUFFIXES,
        Shape,
        default_shape,
        export_onnx,
        export_tensors,
        merged,
    )
    from fedvsr.inference.trained import find_trained

    match = re.fullmatch(r"(\d+)x(\d+)x(\d+)", shape) if shape is not None else None
    if shape is not None and (to != "onnx" or not match):
        reason = "goes with --to onnx" if to != "onnx" else "is not of the form 5x64x64"
        raise UserError(f"--input {shape} {reason}")
    trained = find_trained(checkpoint, results, model, settings or ())
    if merge:
        trained = merged(trained)
    path = out if out is not None else Path(Path(trained.name).stem + SUFFIXES[to])
    if not path.parent.is_dir():
        raise UserError(f"there is no folder {path.parent} to write {path.name} to")
    if path.exists() and not overwrite:
        raise UserError(f"{path} exists already; choose another by --out, or give --overwrite")
    message = f"{path}: {trained.origin}"
    if to == "onnx":
        input_shape = Shape(*map(int, match.groups())) if match else default_shape(trained.spec)
        difference = export_onnx(trained, path, input_shape)
        message += (
            f", for input {input_shape}; "
            f"differs from PyTorch by {difference:.1g} of the value range"
        )
    else:
        export_tensors(trained, to, path)
    say(message)
